/*
 * haneul-bench: what virtualization costs, one small program for what no standard tool measures.
 *
 *     gcc -O2 -static -o haneul-bench bench.c
 *     haneul-bench WORKLOAD [--seconds S] [--samples N]      one JSON line
 *     haneul-bench list                                      the workloads, one a line
 *     haneul-bench command [--seconds S] [--samples N] -- PROGRAM ARGUMENT...      how long a program runs
 *     haneul-bench tcp-echo PORT                             serves one connection of tcp-latency
 *     haneul-bench tcp-latency ADDRESS PORT [--seconds S] [--samples N]
 *
 * The very same file runs on the bare machine and in every guest: static, so that no library of the guest's has a part in it,
 * and without code that is chosen by the processor's abilities (an emulated one has others).
 *
 * Iterations are found by trying: a system call may cost 0.1 us here and 25 us there. A sample is one batch of them, so that
 * the clock (a system call itself in some guests) is read twice for each batch only. Everything runs on one processor.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Raise it when a workload changes its meaning: figures of different versions are not compared. */
#define VERSION 1

#define MOST_SAMPLES 1000
#define PAGE 4096

/* What the loops computed ends up here and is printed: the compiler can leave nothing out. */
static volatile uint64_t sink;

static void fail(const char *what)
{
    fprintf(stderr, "haneul-bench: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec time;
    if (clock_gettime(CLOCK_MONOTONIC, &time) != 0)
        fail("clock_gettime");
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* ---- computing -------------------------------------------------------------------------------------------- */

/* Arithmetic in registers alone: a translator makes nearly the same instructions of it. */
static void registers(uint64_t count)
{
    uint64_t x = sink | 1;
    for (uint64_t i = 0; i < count; i++) {
        /* xorshift64*: each step needs the one before. */
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        x *= 0x2545F4914F6CDD1DULL;
    }
    sink = x;
}

#define NUMBERS 64

/* Sorts arrays of numbers by insertion: comparisons, branches and small accesses to memory, as most programs are made of. */
static void integer(uint64_t count)
{
    static uint32_t sorted[NUMBERS];
    uint32_t number = (uint32_t)sink;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        for (int at = 0; at < NUMBERS; at++) {
            int to = at;
            number = number * 1664525u + 1013904223u;
            for (; to > 0 && sorted[to - 1] > number >> 8; to--)
                sorted[to] = sorted[to - 1];
            sorted[to] = number >> 8;
        }
        sum += sorted[NUMBERS / 2];
    }
    sink += sum;
}

static void floating(uint64_t count)
{
    double x = 0.3 + 1e-9 * (double)(sink & 1);
    for (uint64_t i = 0; i < count; i++)
        x = 3.7 * x * (1.0 - x); /* the logistic map */
    sink += (uint64_t)(x * 1e15);
}

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, int by)
{
    return x >> by | x << (32 - by);
}

/* One block of FIPS 180-4, as it is written there. */
static void sha256_block(uint32_t state[8], const uint8_t *block)
{
    uint32_t w[64];
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8
             | block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    for (int i = 0; i < 64; i++) {
        uint32_t s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
        uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + K[i] + w[i];
        uint32_t s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
        uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1;
        d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

static const uint32_t SHA256_START[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

/* An emulator that computes wrongly is not measured. "abc": FIPS 180-4, appendix. */
static void sha256_check(void)
{
    static const uint32_t wanted[8] = {
        0xba7816bf, 0x8f01cfea, 0x414140de, 0x5dae2223, 0xb00361a3, 0x96177a9c, 0xb410ff61, 0xf20015ad,
    };
    uint8_t block[64] = {'a', 'b', 'c', 0x80};
    uint32_t state[8];
    block[63] = 24;
    memcpy(state, SHA256_START, sizeof state);
    sha256_block(state, block);
    if (memcmp(state, wanted, sizeof state) != 0) {
        fprintf(stderr, "haneul-bench: this machine computes SHA-256 wrongly\n");
        exit(1);
    }
}

#define SHA256_BYTES 16384

static void sha256(uint64_t count)
{
    static uint8_t data[SHA256_BYTES];
    uint32_t state[8];
    memcpy(state, SHA256_START, sizeof state);
    for (uint64_t i = 0; i < count; i++) {
        data[i % SHA256_BYTES]++;
        for (int at = 0; at < SHA256_BYTES; at += 64)
            sha256_block(state, data + at);
    }
    sink += state[0];
}

/* ---- memory ----------------------------------------------------------------------------------------------- */

/* Three arrays, beyond what caches hold. A sum of two, so that it becomes no memcpy, which would depend on the processor. */
#define WORDS ((size_t)4 << 20)
static uint64_t *arrays[3];

static void memory_prepare(void)
{
    for (int i = 0; i < 3; i++) {
        arrays[i] = mmap(NULL, WORDS * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (arrays[i] == MAP_FAILED)
            fail("mmap");
        for (size_t at = 0; at < WORDS; at++)
            arrays[i][at] = at + (size_t)i;
    }
}

static void memory(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t *restrict to = arrays[i % 3];
        const uint64_t *one = arrays[(i + 1) % 3], *other = arrays[(i + 2) % 3];
        for (size_t at = 0; at < WORDS; at++)
            to[at] = one[at] + 3 * other[at];
        sink += to[i % WORDS];
    }
}

#define FAULT_PAGES 2048

static void page_fault(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint8_t *pages = mmap(NULL, FAULT_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED)
            fail("mmap");
        madvise(pages, FAULT_PAGES * PAGE, MADV_NOHUGEPAGE); /* may be unknown to the kernel: then there are none */
        for (size_t page = 0; page < FAULT_PAGES; page++)
            pages[page * PAGE] = (uint8_t)i | 1;
        sink += pages[(i % FAULT_PAGES) * PAGE];
        munmap(pages, FAULT_PAGES * PAGE);
    }
}

/* ---- system calls and processes --------------------------------------------------------------------------- */

static void getppid_call(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++)
        sum += (uint64_t)syscall(SYS_getppid);
    sink += sum;
}

static int zero;

static void read_prepare(void)
{
    zero = open("/dev/zero", O_RDONLY);
    if (zero < 0)
        fail("/dev/zero");
}

static void read_byte(uint64_t count)
{
    uint8_t byte = 1;
    for (uint64_t i = 0; i < count; i++)
        if (read(zero, &byte, 1) != 1)
            fail("read");
    sink += byte;
}

static void wait_for(pid_t child)
{
    int status;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "haneul-bench: a child failed\n");
        exit(1);
    }
    sink += (uint64_t)child;
}

static void fork_exit(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (child == 0)
            _exit(0);
        wait_for(child);
    }
}

static void fork_exec(uint64_t count)
{
    char *arguments[] = {"haneul-bench", "true", NULL}, *environment[] = {NULL};
    for (uint64_t i = 0; i < count; i++) {
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (child == 0) {
            execve("/proc/self/exe", arguments, environment);
            _exit(1);
        }
        wait_for(child);
    }
}

/* A second process on the same processor, which ends with this one. */
static pid_t companion(void)
{
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return child;
}

/* Whose turn it is: two processes hand over by futex, and do nothing else. */
static int *turn;

static void futex(int operation, int value)
{
    if (syscall(SYS_futex, turn, operation, value, NULL, NULL, 0) < 0 && errno != EAGAIN && errno != EINTR)
        fail("futex");
}

static void hand_over(int me)
{
    __atomic_store_n(turn, 1 - me, __ATOMIC_SEQ_CST);
    futex(FUTEX_WAKE, 1);
    while (__atomic_load_n(turn, __ATOMIC_SEQ_CST) != me)
        futex(FUTEX_WAIT, 1 - me);
}

static void switch_prepare(void)
{
    turn = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (turn == MAP_FAILED)
        fail("mmap");
    if (companion() == 0) {
        while (__atomic_load_n(turn, __ATOMIC_SEQ_CST) != 1)
            futex(FUTEX_WAIT, 0);
        for (;;)
            hand_over(1);
    }
}

static void context_switch(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        hand_over(0);
    sink += count;
}

static int there[2], back[2];

static void pipe_prepare(void)
{
    uint8_t byte;
    if (pipe(there) != 0 || pipe(back) != 0)
        fail("pipe");
    if (companion() == 0)
        for (;;)
            if (read(there[0], &byte, 1) != 1 || write(back[1], &byte, 1) != 1)
                _exit(0);
}

static void pipe_ping_pong(uint64_t count)
{
    uint8_t byte = 1;
    for (uint64_t i = 0; i < count; i++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            fail("pipe");
    sink += byte;
}

/* ---- timer ------------------------------------------------------------------------------------------------ */

static int ascending(const void *one, const void *other)
{
    double x = *(const double *)one, y = *(const double *)other;
    return (x > y) - (x < y);
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof *values, ascending);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

#define SLEEPS 101

/* How much later than asked a sleep of 1 ms ends, in seconds: the median of many. */
static double lateness(void)
{
    static double late[SLEEPS];
    for (int i = 0; i < SLEEPS; i++) {
        struct timespec asked = {0, 1000000};
        double began = now();
        if (clock_nanosleep(CLOCK_MONOTONIC, 0, &asked, NULL) != 0)
            fail("clock_nanosleep");
        late[i] = now() - began - 1e-3;
    }
    sink += (uint64_t)(late[0] * 1e9);
    return median(late, SLEEPS);
}

/* ---- network ---------------------------------------------------------------------------------------------- */

static int connection;

static void no_delay(int socket)
{
    int yes = 1;
    if (setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) != 0)
        fail("TCP_NODELAY");
}

static int tcp_echo(uint16_t port)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
    int listening = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    uint8_t byte;
    alarm(120); /* nobody came, or went without a word */
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (listening < 0 || bind(listening, (struct sockaddr *)&here, sizeof here) != 0 || listen(listening, 1) != 0)
        fail("listen");
    printf("listening\n");
    fflush(stdout);
    connection = accept(listening, NULL, NULL);
    if (connection < 0)
        fail("accept");
    no_delay(connection);
    while (read(connection, &byte, 1) == 1)
        if (write(connection, &byte, 1) != 1)
            break;
    return 0;
}

static void tcp_connect(const char *address, uint16_t port)
{
    struct sockaddr_in there_is = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, address, &there_is.sin_addr) != 1) {
        fprintf(stderr, "haneul-bench: %s is no IPv4 address\n", address);
        exit(2);
    }
    connection = socket(AF_INET, SOCK_STREAM, 0);
    if (connection < 0 || connect(connection, (struct sockaddr *)&there_is, sizeof there_is) != 0)
        fail("connect");
    no_delay(connection);
}

static void tcp_latency(uint64_t count)
{
    uint8_t byte = 1;
    for (uint64_t i = 0; i < count; i++)
        if (write(connection, &byte, 1) != 1 || read(connection, &byte, 1) != 1)
            fail("the connection");
    sink += byte;
}

/* ---- measuring -------------------------------------------------------------------------------------------- */

/*
 * A sample's figure is `scale` times seconds for each operation where `unit` is a time, and `scale` operations in a second
 * where it is a rate. A call of run() with n does n * operations.
 */
struct workload {
    const char *name, *unit;
    double operations, scale;
    int is_rate;
    void (*prepare)(void);
    void (*run)(uint64_t count);
};

static const struct workload WORKLOADS[] = {
    {"registers", "ns", 1, 1e9, 0, NULL, registers},
    {"integer", "ns", NUMBERS, 1e9, 0, NULL, integer},
    {"floating", "ns", 1, 1e9, 0, NULL, floating},
    {"sha256", "MB/s", SHA256_BYTES, 1e-6, 1, sha256_check, sha256},
    {"memory", "MB/s", 3.0 * WORDS * 8, 1e-6, 1, memory_prepare, memory},
    {"page-fault", "us", FAULT_PAGES, 1e6, 0, NULL, page_fault},
    {"getppid", "us", 1, 1e6, 0, NULL, getppid_call},
    {"read", "us", 1, 1e6, 0, read_prepare, read_byte},
    {"switch", "us", 2, 1e6, 0, switch_prepare, context_switch},
    {"pipe", "us", 1, 1e6, 0, pipe_prepare, pipe_ping_pong},
    {"fork", "us", 1, 1e6, 0, NULL, fork_exit},
    {"exec", "us", 1, 1e6, 0, NULL, fork_exec},
    {"timer", "us", 1, 1e6, 0, NULL, NULL},
    {"tcp-latency", "us", 1, 1e6, 0, NULL, tcp_latency},
};

static double seconds_of(const struct workload *workload, uint64_t count)
{
    double began = now();
    workload->run(count);
    return now() - began;
}

/* How many iterations last about `wanted` seconds. */
static uint64_t calibrate(const struct workload *workload, double wanted)
{
    uint64_t count = 1;
    for (;;) {
        double took = seconds_of(workload, count);
        if (took >= wanted / 4) {
            double fitting = (double)count * wanted / took;
            return fitting < 1 ? 1 : (uint64_t)fitting;
        }
        count *= took < wanted / 40 ? 8 : 2;
    }
}

static void report(const struct workload *workload, double *samples, int count, uint64_t iterations, double seconds)
{
    double sorted[MOST_SAMPLES];
    memcpy(sorted, samples, (size_t)count * sizeof *samples);
    printf("{\"name\": \"%s\", \"unit\": \"%s\", \"better\": \"%s\", \"value\": %.6g, \"samples\": [", workload->name,
           workload->unit, workload->is_rate ? "higher" : "lower", median(sorted, (size_t)count));
    for (int i = 0; i < count; i++)
        printf("%s%.6g", i ? ", " : "", samples[i]);
    printf("], \"iterations\": %llu, \"seconds\": %.3f, \"checksum\": \"%016llx\", \"version\": %d}\n",
           (unsigned long long)iterations, seconds, (unsigned long long)sink, VERSION);
}

/* Runs a program again and again, for about `seconds`, at least once and at most `count` times. */
static void measure_command(char **arguments, double seconds, int count)
{
    static const struct workload command = {"command", "s", 1, 1, 0, NULL, NULL};
    double samples[MOST_SAMPLES], began = now();
    int made = 0;
    do {
        double start = now();
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (child == 0) {
            int nothing = open("/dev/null", O_RDWR);
            dup2(nothing, 0);
            dup2(nothing, 1);
            execv(arguments[0], arguments);
            fail(arguments[0]);
        }
        wait_for(child);
        samples[made++] = now() - start;
    } while (made < count && now() - began < seconds);
    report(&command, samples, made, 1, now() - began);
}

static void measure(const struct workload *workload, double seconds, int count)
{
    double samples[MOST_SAMPLES], began;
    uint64_t iterations = SLEEPS;
    if (workload->prepare != NULL)
        workload->prepare();
    if (workload->run != NULL)
        iterations = calibrate(workload, seconds / count);
    began = now();
    for (int i = 0; i < count; i++) {
        double operations = (double)iterations * workload->operations;
        double took = workload->run == NULL ? lateness() : seconds_of(workload, iterations);
        if (workload->run == NULL)
            operations = 1;
        samples[i] = workload->is_rate ? operations / took * workload->scale : took / operations * workload->scale;
    }
    report(workload, samples, count, iterations, now() - began);
}

static const struct workload *find(const char *name)
{
    for (size_t i = 0; i < sizeof WORKLOADS / sizeof *WORKLOADS; i++)
        if (strcmp(WORKLOADS[i].name, name) == 0)
            return &WORKLOADS[i];
    return NULL;
}

static int usage(void)
{
    fprintf(stderr, "usage: haneul-bench WORKLOAD [--seconds S] [--samples N]; haneul-bench list\n");
    return 2;
}

/* One processor for all of it: the first that this process may use. */
static void pin(void)
{
    cpu_set_t set, one;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return; /* a kernel of one processor may not know it */
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &set)) {
            CPU_ZERO(&one);
            CPU_SET(i, &one);
            sched_setaffinity(0, sizeof one, &one);
            return;
        }
}

/* What was asked for. `rest` is what stands behind the options. */
struct request {
    double seconds;
    int samples;
    char **rest;
};

static struct request options(char **arguments)
{
    struct request asked = {1.0, 5, NULL};
    while (arguments[0] != NULL && arguments[1] != NULL && strcmp(arguments[0], "--") != 0) {
        if (strcmp(arguments[0], "--seconds") == 0)
            asked.seconds = atof(arguments[1]);
        else if (strcmp(arguments[0], "--samples") == 0)
            asked.samples = atoi(arguments[1]);
        else
            exit(usage());
        arguments += 2;
    }
    if (arguments[0] != NULL && strcmp(arguments[0], "--") == 0)
        arguments++;
    if (!(asked.seconds > 0) || asked.samples < 1 || asked.samples > MOST_SAMPLES)
        exit(usage());
    asked.rest = arguments;
    return asked;
}

int main(int count, char **arguments)
{
    const char *name = count > 1 ? arguments[1] : "";
    const struct workload *workload = find(name);
    struct request asked;
    if (strcmp(name, "true") == 0)
        return 0;
    /* Sleeps may end up to 50 us later otherwise, so that a processor wakes up less often. */
    prctl(PR_SET_TIMERSLACK, 1UL);
    if (strcmp(name, "list") == 0) {
        for (size_t i = 0; i < sizeof WORKLOADS / sizeof *WORKLOADS; i++)
            printf("%s\n", WORKLOADS[i].name);
        return 0;
    }
    if (strcmp(name, "tcp-echo") == 0 && count == 3)
        return tcp_echo((uint16_t)atoi(arguments[2]));
    if (strcmp(name, "command") == 0) {
        asked = options(arguments + 2);
        if (asked.rest[0] == NULL)
            return usage();
        pin();
        measure_command(asked.rest, asked.seconds, asked.samples);
        return 0;
    }
    if (workload == NULL || (workload->run == tcp_latency && count < 4))
        return usage();
    asked = options(arguments + (workload->run == tcp_latency ? 4 : 2));
    if (asked.rest[0] != NULL)
        return usage();
    pin();
    if (workload->run == tcp_latency)
        tcp_connect(arguments[2], (uint16_t)atoi(arguments[3]));
    measure(workload, asked.seconds, asked.samples);
    return 0;
}
