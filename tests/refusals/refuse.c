// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: The msgd authors
//
// A preloaded library that makes the n-th call of some kinds fail, as the kernel would: no descriptors, no memory, no
// locks.  refusing.py compiles it and drives it through the variables below.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { DESCRIPTORS = 1, MEMORY = 2, LOCKS = 4, WATCHES = 8 };

int refuse_kinds;    // the kinds that are counted; 0: nothing is
int refuse_at;       // the number of the call that fails, from 1 on; 0: all of them
int refuse_errno;    // what it fails with
int refuse_calls;    // how many there were
size_t refuse_from;  // the smallest allocation that is counted

static int refuses(int kind)
{
    if (!(refuse_kinds & kind))
        return 0;
    refuse_calls++;
    if (refuse_at != 0 && refuse_calls != refuse_at)
        return 0;
    errno = refuse_errno;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define WRAP(kind, type, name, parameters, arguments) \
    type name parameters                              \
    {                                                 \
        static __typeof__(&name) real;                \
        if (real == NULL)                             \
            real = REAL(name);                        \
        if (refuses(kind))                            \
            return (type)-1;                          \
        return real arguments;                        \
    }

int eventfd(unsigned int, int);
int timerfd_create(int, int);

WRAP(DESCRIPTORS, int, dup, (int fd), (fd))
WRAP(DESCRIPTORS, int, dup2, (int fd, int to), (fd, to))
WRAP(DESCRIPTORS, int, dup3, (int fd, int to, int flags), (fd, to, flags))
WRAP(DESCRIPTORS, int, socket, (int domain, int kind, int protocol), (domain, kind, protocol))
WRAP(DESCRIPTORS, int, socketpair, (int domain, int kind, int protocol, int pair[2]), (domain, kind, protocol, pair))
WRAP(DESCRIPTORS, int, accept4, (int fd, struct sockaddr *name, socklen_t *length, int flags), (fd, name, length, flags))
WRAP(DESCRIPTORS, int, eventfd, (unsigned int count, int flags), (count, flags))
WRAP(DESCRIPTORS, int, timerfd_create, (int clock, int flags), (clock, flags))
WRAP(DESCRIPTORS, int, epoll_create1, (int flags), (flags))
WRAP(DESCRIPTORS, int, pipe2, (int pair[2], int flags), (pair, flags))
WRAP(DESCRIPTORS, int, memfd_create, (const char *name, unsigned int flags), (name, flags))

// Only adding a descriptor takes memory.
int epoll_ctl(int fd, int what, int other, struct epoll_event *event)
{
    static __typeof__(&epoll_ctl) real;
    if (real == NULL)
        real = REAL(epoll_ctl);
    return what == EPOLL_CTL_ADD && refuses(WATCHES) ? -1 : real(fd, what, other, event);
}


// Only maps of files: the others are the interpreter's own.
void *mmap(void *at, size_t size, int access, int flags, int fd, off_t offset)
{
    static __typeof__(&mmap) real;
    if (real == NULL)
        real = REAL(mmap);
    return fd >= 0 && refuses(MEMORY) ? MAP_FAILED : real(at, size, access, flags, fd, offset);
}

void *mmap64(void *at, size_t size, int access, int flags, int fd, off_t offset)
{
    return mmap(at, size, access, flags, fd, offset);
}

#define WRAP_OPEN(name, first, passed)                           \
    int name first                                               \
    {                                                            \
        static int (*real) first;                                \
        mode_t mode = 0;                                         \
        if (flags & (O_CREAT | O_TMPFILE)) {                     \
            va_list more;                                        \
            va_start(more, flags);                               \
            mode = va_arg(more, mode_t);                         \
            va_end(more);                                        \
        }                                                        \
        if (real == NULL)                                        \
            *(void **)&real = dlsym(RTLD_NEXT, #name);           \
        if (refuses(DESCRIPTORS))                                \
            return -1;                                           \
        return real passed;                                      \
    }

WRAP_OPEN(open, (const char *path, int flags, ...), (path, flags, mode))
WRAP_OPEN(open64, (const char *path, int flags, ...), (path, flags, mode))
WRAP_OPEN(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode))
WRAP_OPEN(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode))

// Whether this takes or asks for a lock.  The kernel never refuses to release one.
static int locks(int command, const void *argument)
{
    if ((command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK) &&
        ((const struct flock *)argument)->l_type == F_UNLCK)
        return 0;
    return command == F_SETLK || command == F_SETLKW || command == F_GETLK || command == F_OFD_SETLK;
}

#define WRAP_FCNTL(name)                                                                        \
    int name(int fd, int command, ...)                                                          \
    {                                                                                           \
        static int (*real)(int, int, ...);                                                      \
        va_list more;                                                                           \
        va_start(more, command);                                                                \
        void *argument = va_arg(more, void *);                                                  \
        va_end(more);                                                                           \
        if (real == NULL)                                                                       \
            *(void **)&real = dlsym(RTLD_NEXT, #name);                                          \
        if ((command == F_DUPFD || command == F_DUPFD_CLOEXEC) && refuses(DESCRIPTORS))         \
            return -1;                                                                          \
        if (locks(command, argument) && refuses(LOCKS))                                                   \
            return -1;                                                                          \
        return real(fd, command, argument);                                                     \
    }

WRAP_FCNTL(fcntl)
WRAP_FCNTL(fcntl64)

long syscall(long number, ...)
{
    static long (*real)(long, ...);
    long arguments[6];
    va_list more;
    va_start(more, number);
    for (int i = 0; i < 6; i++)
        arguments[i] = va_arg(more, long);
    va_end(more);
    if (real == NULL)
        *(void **)&real = dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_pidfd_open && refuses(DESCRIPTORS))
        return -1;
    return real(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);

void *malloc(size_t size)
{
    return size >= refuse_from && refuses(MEMORY) ? NULL : __libc_malloc(size);
}

void *calloc(size_t number, size_t size)
{
    return number * size >= refuse_from && refuses(MEMORY) ? NULL : __libc_calloc(number, size);
}

void *realloc(void *old, size_t size)
{
    return size >= refuse_from && refuses(MEMORY) ? NULL : __libc_realloc(old, size);
}
