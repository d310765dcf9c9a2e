/* The floor: pings over bare AF_UNIX sockets, without a messaging format and without Python.
 *
 *   floor dgram|stream DIRECTORY SECONDS WINDOW TEXTSIZE SERVERCPU CLIENTCPU [TIMES]     (-1: any CPU)
 *
 * A child echoes. The parent sends pairs of a TEXTSIZE-byte and an empty message, at most WINDOW of them unanswered, and
 * prints "SENT RECEIVED SECONDS CPUSECONDS". A datagram is a message. On a stream each message has a 4-byte length
 * prefix; a process reads all that have arrived at once, and writes the messages of a round at once.
 *
 * With TIMES there is one message at a time, and the seconds of each round trip go into the file TIMES as doubles.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 20, PATIENCE_MS = 10000 };

static char text[BUFFER], in[BUFFER], out[2 * BUFFER];

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

static void pin(int cpu)
{
    if (cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
        if (sched_setaffinity(0, sizeof(set), &set) < 0)
            die("sched_setaffinity");
    }
}

static struct sockaddr_un address(const char *directory, const char *name)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    if (snprintf(sun.sun_path, sizeof(sun.sun_path), "%s/%s", directory, name) >= (int)sizeof(sun.sun_path)) {
        errno = ENAMETOOLONG;
        die(directory);
    }
    return sun;
}

static int bound(int type, struct sockaddr_un sun)
{
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&sun, sizeof(sun)) < 0)
        die("bind");
    return fd;
}

static void wait_for(int fd, short events)
{
    struct pollfd pfd = {.fd = fd, .events = events};
    int ready = poll(&pfd, 1, PATIENCE_MS);
    if (ready < 0)
        die("poll");
    if (ready == 0) {
        errno = ETIMEDOUT;
        die("waiting for the other process");
    }
}

/* Datagrams: each side has a bound socket and a socket connected to the other's. */

static void dgram_echo(int receiving, int sending)
{
    for (;;) {
        ssize_t length = recv(receiving, in, sizeof(in), 0);
        if (length < 0)
            die("recv");
        while (send(sending, in, length, 0) < 0)
            if (errno != EINTR)
                exit(0); /* the parent has ended */
    }
}

static void dgram_ping(int receiving, int sending, double end, long window, size_t size, long *sent, long *received)
{
    while (now() < end || *received < *sent) {
        while (now() < end && *sent - *received <= window - (window > 1 ? 2 : 1)) {
            int i, burst = window > 1 ? 2 : 1, full = 0;
            for (i = 0; i < burst && !full; i++) {
                if (send(sending, text, *sent & 1 ? 0 : size, MSG_DONTWAIT) >= 0)
                    ++*sent;
                else if (errno == EAGAIN)
                    full = 1;
                else
                    die("send");
            }
            if (full)
                break;
        }
        if (*received < *sent) {
            if (recv(receiving, in, sizeof(in), MSG_DONTWAIT) < 0) {
                if (errno != EAGAIN)
                    die("recv");
                wait_for(receiving, POLLIN);
                if (recv(receiving, in, sizeof(in), 0) < 0)
                    die("recv");
            }
            ++*received;
            while (recv(receiving, in, sizeof(in), MSG_DONTWAIT) >= 0)
                ++*received;
        } else {
            wait_for(sending, POLLOUT);
        }
    }
}

/* Streams: messages are parsed in place; an incomplete one is moved to the front of the buffer. */

static void write_all(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t done = send(fd, data, length, MSG_NOSIGNAL);
        if (done < 0)
            die("send");
        data += done;
        length -= done;
    }
}

static size_t whole_messages(const char *data, size_t length, long *number)
{
    size_t at = 0;
    uint32_t size;
    while (length - at >= sizeof(size)) {
        memcpy(&size, data + at, sizeof(size));
        if (length - at - sizeof(size) < size)
            break;
        at += sizeof(size) + size;
        ++*number;
    }
    return at;
}

static size_t read_messages(int fd, size_t *kept, long *number)
{
    ssize_t got = recv(fd, in + *kept, sizeof(in) - *kept, 0);
    if (got < 0)
        die("recv");
    if (got == 0)
        exit(0);
    *kept += got;
    return whole_messages(in, *kept, number);
}

static void stream_echo(int fd)
{
    size_t kept = 0;
    long ignored = 0;
    for (;;) {
        size_t whole = read_messages(fd, &kept, &ignored);
        write_all(fd, in, whole);
        memmove(in, in + whole, kept -= whole);
    }
}

static void stream_ping(int fd, double end, long window, size_t size, long *sent, long *received)
{
    size_t kept = 0;
    int burst = window > 1 ? 2 : 1;
    while (now() < end || *received < *sent) {
        size_t length = 0, whole;
        while (now() < end && *sent - *received <= window - burst && length + 2 * size + 64 < sizeof(out)) {
            int i;
            for (i = 0; i < burst; i++) {
                uint32_t header = *sent & 1 ? 0 : size;
                memcpy(out + length, &header, sizeof(header));
                memcpy(out + length + sizeof(header), text, header);
                length += sizeof(header) + header;
                ++*sent;
            }
        }
        write_all(fd, out, length);
        if (*received == *sent)
            continue;
        wait_for(fd, POLLIN);
        whole = read_messages(fd, &kept, received);
        memmove(in, in + whole, kept -= whole);
    }
}

/* One message at a time, of TEXTSIZE bytes. */
static void timed_ping(int receiving, int sending, int streams, double end, size_t size, const char *path, long *number)
{
    FILE *times = fopen(path, "w");
    uint32_t header = size;
    size_t prefix = streams ? sizeof(header) : 0;
    double before = now();
    if (!times)
        die(path);
    memcpy(out, &header, prefix);
    memcpy(out + prefix, text, size);
    while (before < end) {
        size_t got = 0;
        double took;
        if (send(sending, out, prefix + size, MSG_NOSIGNAL) < 0)
            die("send");
        do {
            ssize_t part = recv(receiving, in + got, sizeof(in) - got, 0);
            if (part < 0 || (part == 0 && streams))
                die("recv");
            got += part;
        } while (streams && got < prefix + size);
        took = now() - before;
        fwrite(&took, sizeof(took), 1, times);
        ++*number;
        before = now();
    }
    if (fclose(times) != 0)
        die(path);
}

int main(int argc, char **argv)
{
    if (argc != 8 && argc != 9) {
        fprintf(stderr, "usage: floor dgram|stream DIRECTORY SECONDS WINDOW TEXTSIZE SERVERCPU CLIENTCPU [TIMES]\n");
        return 2;
    }
    int streams = strcmp(argv[1], "stream") == 0, cpu = atoi(argv[6]);
    double seconds = atof(argv[3]), began;
    long window = atol(argv[4]), sent = 0, received = 0;
    size_t size = strtoul(argv[5], NULL, 10);
    struct sockaddr_un server = address(argv[2], "server"), client = address(argv[2], "client");
    int server_fd = bound(streams ? SOCK_STREAM : SOCK_DGRAM, server), fd = -1, sending;
    pid_t child;

    if (streams && listen(server_fd, 1) < 0)
        die("listen");
    if (!streams)
        fd = bound(SOCK_DGRAM, client);
    memset(text, 't', sizeof(text));
    if (size > sizeof(text) - 64) {
        errno = EMSGSIZE;
        die("TEXTSIZE");
    }
    if ((child = fork()) < 0)
        die("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pin(cpu);
        if (streams) {
            if ((fd = accept(server_fd, NULL, NULL)) < 0)
                die("accept");
            stream_echo(fd);
        }
        sending = socket(AF_UNIX, SOCK_DGRAM, 0);
        if (connect(sending, (struct sockaddr *)&client, sizeof(client)) < 0)
            die("connect");
        dgram_echo(server_fd, sending);
    }
    pin(atoi(argv[7]));
    sending = socket(AF_UNIX, streams ? SOCK_STREAM : SOCK_DGRAM, 0);
    if (connect(sending, (struct sockaddr *)&server, sizeof(server)) < 0)
        die("connect");
    began = now();
    if (argc == 9) {
        timed_ping(streams ? sending : fd, sending, streams, began + seconds, size, argv[8], &sent);
        received = sent;
    } else if (streams)
        stream_ping(sending, began + seconds, window, size, &sent, &received);
    else
        dgram_ping(fd, sending, began + seconds, window, size, &sent, &received);
    began = now() - began;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    printf("%ld %ld %.9f %.6f\n", sent, received, began, used(RUSAGE_SELF) + used(RUSAGE_CHILDREN));
    return 0;
}
