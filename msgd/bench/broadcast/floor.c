/* The floor of a broadcast: one sender and N listeners over bare socket pairs, without a messaging format and without
 * Python.
 *
 *   floor LISTENERS WINDOW SIZE SECONDS [CPU...]     (the processes are bound to the CPUs in turn)
 *
 * The sender sends rounds of WINDOW messages to each listener, and each listener answers the last one of a round. With a
 * window of 1 the next round waits for the answers; otherwise it waits for those to the round before. At the end the
 * listeners report how many messages they have received. The program prints "BROADCASTS RECEIVED SECONDS CPUSECONDS".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE_SECONDS = 10 };

static void die(const char *what)
{
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec / 1e9;
}

static double used(int who)
{
    struct rusage usage;
    getrusage(who, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void pin(int number, int cpus, char **cpu)
{
    if (cpus > 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(atoi(cpu[number % cpus]), &set);
        if (sched_setaffinity(0, sizeof(set), &set) < 0)
            die("sched_setaffinity");
    }
}

/* Answer the last message of each round until the sender shuts its side down; then report the number of messages. */
static void listen_to(int fd, long window, char *buffer, size_t size)
{
    long received = 0;
    while (recv(fd, buffer, size, 0) > 0)
        if (++received % window == 0 && send(fd, "a", 1, MSG_NOSIGNAL) < 0)
            _exit(1);
    _exit(send(fd, &received, sizeof(received), MSG_NOSIGNAL) < 0);
}

static void take_answers(const int *fds, long listeners)
{
    char answer;
    for (long i = 0; i < listeners; i++)
        if (recv(fds[i], &answer, sizeof(answer), 0) <= 0)
            die("waiting for an answer");
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: floor LISTENERS WINDOW SIZE SECONDS [CPU...]\n");
        return 2;
    }
    long listeners = atol(argv[1]), window = atol(argv[2]), sent = 0, rounds = 0, answered = 0, received = 0;
    size_t size = strtoul(argv[3], NULL, 10) + 1; /* a packet of 0 bytes would look like the end */
    double seconds = atof(argv[4]), began;
    struct timeval patience = {.tv_sec = PATIENCE_SECONDS};
    int *fds = calloc(listeners, sizeof(*fds));
    char *data = calloc(1, size);
    if (!fds || !data)
        die("calloc");

    for (long i = 0; i < listeners; i++) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
            die("socketpair");
        pid_t child = fork();
        if (child < 0)
            die("fork");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            close(pair[0]);
            pin(i, argc - 5, argv + 5);
            listen_to(pair[1], window, data, size);
        }
        close(pair[1]);
        fds[i] = pair[0];
        setsockopt(fds[i], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    }
    pin(listeners, argc - 5, argv + 5);

    began = now();
    do {
        for (long r = 0; r < window; r++, sent++)
            for (long i = 0; i < listeners; i++)
                if (send(fds[i], data, size, MSG_NOSIGNAL) < 0)
                    die("send");
        rounds++;
        for (; answered < rounds - (window > 1); answered++)
            take_answers(fds, listeners);
    } while (now() < began + seconds);
    for (; answered < rounds; answered++)
        take_answers(fds, listeners);
    began = now() - began;

    for (long i = 0; i < listeners; i++) {
        long count;
        shutdown(fds[i], SHUT_WR);
        if (recv(fds[i], &count, sizeof(count), 0) != sizeof(count))
            die("waiting for a listener's report");
        received += count;
    }
    while (wait(NULL) > 0)
        ;
    printf("%ld %ld %.9f %.6f\n", sent, received, began, used(RUSAGE_SELF) + used(RUSAGE_CHILDREN));
    return 0;
}
