/* A disk that fails: loaded before libc, it lets calls that write below a directory fail.
 *
 * FAULT_DIRECTORY  the calls on files below it count, from 1
 * FAULT_CALL       the number of the call that fails, 0 for none
 * FAULT_ERRNO      with which error; 0: the process is killed before the call
 * FAULT_LASTS      1: all calls after it fail too, as on a full disk; 0: only this one
 * FAULT_COUNT      a file that gets, at the end of the process, a line for each call: its number and name
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_int calls;

static int number_of(const char *name)
{
    const char *value = getenv(name);
    return value ? atoi(value) : 0;
}

static int below(const char *path)
{
    const char *directory = getenv("FAULT_DIRECTORY");
    char absolute[PATH_MAX];
    if (!directory || !path)
        return 0;
    if (path[0] != '/') {
        if (!getcwd(absolute, sizeof absolute) || strlen(absolute) + strlen(path) + 2 > sizeof absolute)
            return 0;
        strcat(absolute, "/");
        strcat(absolute, path);
        path = absolute;
    }
    return strncmp(path, directory, strlen(directory)) == 0;
}

static int descriptor_below(int descriptor)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return path[0] == '/' && below(path); /* a pipe has no path */
}

static int fails(const char *name)
{
    int call = atomic_fetch_add(&calls, 1) + 1, wanted = number_of("FAULT_CALL");
    const char *count = getenv("FAULT_COUNT");
    if (count) {
        int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
        ssize_t (*real_write)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
        char line[80];
        int length = snprintf(line, sizeof line, "%d %s\n", call, name);
        int descriptor = real_open(count, O_WRONLY | O_CREAT | O_APPEND, 0644);
        if (descriptor >= 0) {
            if (real_write(descriptor, line, length) < 0)
                abort();
            close(descriptor);
        }
    }
    if (!wanted || call < wanted || (call > wanted && !number_of("FAULT_LASTS")))
        return 0;
    errno = number_of("FAULT_ERRNO");
    if (errno == 0)
        kill(getpid(), SIGKILL);
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_DESCRIPTOR(type, name, parameters, arguments)                       \
    type name parameters                                                      \
    {                                                                         \
        if (descriptor_below(descriptor) && fails(#name))                     \
            return -1;                                                        \
        return REAL(name) arguments;                                          \
    }
#define ON_PATH(name, parameters, arguments)                                   \
    int name parameters                                                       \
    {                                                                         \
        if (below(path) && fails(#name))                                      \
            return -1;                                                        \
        return REAL(name) arguments;                                          \
    }

ON_DESCRIPTOR(ssize_t, write, (int descriptor, const void *data, size_t size), (descriptor, data, size))
ON_DESCRIPTOR(ssize_t, writev, (int descriptor, const struct iovec *data, int count), (descriptor, data, count))
ON_DESCRIPTOR(ssize_t, pwrite, (int descriptor, const void *data, size_t size, off_t at), (descriptor, data, size, at))
ON_DESCRIPTOR(ssize_t, pwrite64, (int descriptor, const void *data, size_t size, off64_t at), (descriptor, data, size, at))
ON_DESCRIPTOR(int, fsync, (int descriptor), (descriptor))
ON_DESCRIPTOR(int, fdatasync, (int descriptor), (descriptor))
ON_DESCRIPTOR(int, ftruncate, (int descriptor, off_t size), (descriptor, size))
ON_DESCRIPTOR(int, ftruncate64, (int descriptor, off64_t size), (descriptor, size))
ON_DESCRIPTOR(int, fallocate, (int descriptor, int mode, off_t at, off_t size), (descriptor, mode, at, size))
ON_DESCRIPTOR(int, fallocate64, (int descriptor, int mode, off64_t at, off64_t size), (descriptor, mode, at, size))
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
ON_PATH(rename, (const char *path, const char *target), (path, target))
ON_PATH(unlink, (const char *path), (path))
ON_PATH(rmdir, (const char *path), (path))

int renameat2(int from, const char *path, int to, const char *target, unsigned int flags)
{
    if (below(path) && fails("renameat2"))
        return -1;
    return REAL(renameat2)(from, path, to, target, flags);
}

int linkat(int from, const char *path, int to, const char *target, int flags)
{
    if (below(target) && fails("linkat"))
        return -1;
    return REAL(linkat)(from, path, to, target, flags);
}

int unlinkat(int folder, const char *path, int flags)
{
    if ((folder == AT_FDCWD ? below(path) : descriptor_below(folder)) && fails("unlinkat"))
        return -1;
    return REAL(unlinkat)(folder, path, flags);
}

#define ON_OPEN(name)                                                          \
    int name(const char *path, int flags, ...)                                \
    {                                                                         \
        va_list more;                                                         \
        va_start(more, flags);                                                \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                         \
        if ((flags & O_CREAT) && below(path) && fails(#name))                 \
            return -1;                                                        \
        return REAL(name)(path, flags, mode);                                 \
    }
ON_OPEN(open)
ON_OPEN(open64)
