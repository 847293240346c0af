/* Gives a clone of a booted machine its own identity (docs/ARCHITECTURE.md, "Warm launch").
 *
 * A template of an image is a machine that was booted until this program waits on a port of a virtio-serial device, and was then saved. Every
 * warm launch goes on from there: the server writes who the instance is, this program makes it so and answers. It is static,
 * and nothing is started on the way: under emulation a process costs tens of milliseconds.
 *
 * Protocol, in lines: here -> server "waiting 2"; server -> here "KEY VALUE" lines and "end"; any number of times here -> server "time?"
 * and back "time SECONDS.NANOSECONDS"; here -> server "resumed KEY=VALUE ..." with what the kernel now says, or "failed TEXT".
 * Afterwards the program AFTER of the command line takes this one's place. Its descriptor 3 is the port: the server hangs up when it may begin with what
 * can wait.
 *
 * OpenSSH's server listens in a template already, where there is no network, with a host key that nobody will be shown: each connection
 * is a new process, which reads the keys of the clone.
 *
 * Usage: resume PORT INTERFACE USER AFTER
 * Sources: random(4) (RNDADDENTROPY, RNDRESEEDCRNG), netdevice(7), rtnetlink(7), machine-id(5), clock_settime(2), sshd(8).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <netinet/in.h>
#include <pthread.h>
#include <pwd.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MOST_KEYS 64
#define SEED 512
#define MOST_HOST_KEYS 4
#define CLOCK_ROUNDS 6
#define CLOCK_GOOD 4000000 /* ns: then it is at most 2 ms wrong */
/* That of the routes of systemd-networkd's DHCP client: it replaces this one by its own. */
#define METRIC 1024
#define FLAG "/run/haneul/template"
/* What the SSH server of a template was started with (resume.py): the first that it looks for (sshd_config(5), HostKey). haneul makes none
 * of this type. */
#define TEMPLATE_HOST_KEY "/etc/ssh/ssh_host_rsa_key"
#define SSH_SERVER "/run/sshd.pid"
#define HANDED_OVER 3

struct identity {
    char instance[64], hostname[256], machine_id[33], boot_id[64], mac[18], address[16], gateway[16], dns[16], domain[256];
    char *keys[MOST_KEYS];
    struct host_key {
        char type[16], *private, *public;
    } host_keys[MOST_HOST_KEYS];
    int key_count, host_key_count, prefix, mtu, user_data;
    unsigned char seed[SEED];
    size_t seed_length;
};

static FILE *server, *port; /* from the server, and to it */

static void fail(const char *form, ...) {
    va_list rest;
    va_start(rest, form);
    fputs("failed ", port);
    vfprintf(port, form, rest);
    fprintf(port, ": %s\n", strerror(errno));
    fflush(port);
    va_end(rest);
    exit(1);
}

/* What was there is cut off afterwards: ext4 writes a file that was emptied first to the disk when it is closed. */
static void put(const char *path, const char *text, mode_t mode) {
    int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, mode);
    ssize_t length = (ssize_t)strlen(text);
    if (file < 0 || write(file, text, length) != length || ftruncate(file, length)) fail("%s", path);
    close(file);
}

/* --- what the server says ---------------------------------------------------------------------------------------------- */

static size_t from_hex(const char *text, unsigned char *out, size_t most) {
    size_t length = 0;
    unsigned value;
    while (length < most && sscanf(text + 2 * length, "%2x", &value) == 1) out[length++] = value;
    return length;
}

static void copy(char *to, size_t size, const char *value) {
    if (strlen(value) >= size) {
        errno = E2BIG;
        fail("a value");
    }
    strcpy(to, value);
}

#define SECOND 1000000000LL

static long long now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

/* Where the time goes, in microseconds since the mark before: the first is the server's first word. */
static char spent[256];

static void mark(const char *what) {
    static long long last;
    long long here = now(CLOCK_MONOTONIC);
    size_t used = strlen(spent);
    if (last) snprintf(spent + used, sizeof spent - used, "%s%s:%lld", used ? "," : "", what, (here - last) / 1000);
    last = here;
}

/* `age`: how long ago, in ns, `text` was right. */
static void set_clock(const char *text, long long age) {
    long long seconds = 0, nanoseconds = 0;
    sscanf(text, "%lld.%9lld", &seconds, &nanoseconds);
    long long right = seconds * SECOND + nanoseconds + age;
    struct timespec time = {.tv_sec = right / SECOND, .tv_nsec = right % SECOND};
    if (clock_settime(CLOCK_REALTIME, &time)) fail("the clock");
}

/* Ask a few times, and believe the quickest answer: it was right half the way ago, give or take that half. */
static void ask_time(void) {
    char *line = NULL;
    size_t size = 0;
    long long best = SECOND;
    for (int round = 0; round < CLOCK_ROUNDS && best > CLOCK_GOOD; round++) {
        long long asked = now(CLOCK_MONOTONIC);
        fputs("time?\n", port);
        fflush(port);
        if (getline(&line, &size, server) <= 0) exit(1);
        long long took = now(CLOCK_MONOTONIC) - asked;
        if (took < best && strncmp(line, "time ", 5) == 0) {
            best = took;
            set_clock(line + 5, took / 2);
        }
    }
    free(line);
}

static void take_host_key(struct identity *who, const char *value);

static void take(struct identity *who, const char *key, const char *value) {
#define TEXT(name, field) \
    if (strcmp(key, name) == 0) copy(who->field, sizeof who->field, value)
    TEXT("instance", instance);
    TEXT("hostname", hostname);
    TEXT("machine-id", machine_id);
    TEXT("boot-id", boot_id);
    TEXT("mac", mac);
    TEXT("address", address);
    TEXT("gateway", gateway);
    TEXT("dns", dns);
    TEXT("domain", domain);
    if (strcmp(key, "prefix") == 0) who->prefix = atoi(value);
    if (strcmp(key, "user-data") == 0) who->user_data = atoi(value);
    if (strcmp(key, "mtu") == 0) who->mtu = atoi(value);
    if (strcmp(key, "seed") == 0) who->seed_length = from_hex(value, who->seed, SEED);
    /* At once: files are dated by it. */
    if (strcmp(key, "time") == 0) set_clock(value, 0);
    if (strcmp(key, "host-key") == 0) take_host_key(who, value);
    if (strcmp(key, "key") == 0 && who->key_count < MOST_KEYS) who->keys[who->key_count++] = strdup(value);
}

/* TYPE PRIVATE PUBLIC: the text of the private key's file in hexadecimal digits, and the public one's line. */
static void take_host_key(struct identity *who, const char *value) {
    if (who->host_key_count == MOST_HOST_KEYS) return;
    struct host_key *key = &who->host_keys[who->host_key_count];
    char *copied = strdup(value), *rest = NULL;
    const char *type = strtok_r(copied, " ", &rest), *private = strtok_r(NULL, " ", &rest);
    if (!private || strspn(type, "abcdefghijklmnopqrstuvwxyz0123456789") != strlen(type)) return;
    copy(key->type, sizeof key->type, type);
    key->private = calloc(1, strlen(private) / 2 + 1);
    from_hex(private, (unsigned char *)key->private, strlen(private) / 2);
    key->public = rest;
    who->host_key_count++;
}

static void listen_to_server(struct identity *who) {
    char *line = NULL;
    size_t size = 0;
    ssize_t length;
    while ((length = getline(&line, &size, server)) > 0) {
        if (strncmp(line, "instance ", 9) == 0) mark("");
        line[strcspn(line, "\n")] = 0;
        if (strcmp(line, "end") == 0) {
            explicit_bzero(line, size);
            free(line);
            return;
        }
        char *value = strchr(line, ' ');
        if (value) {
            *value++ = 0;
            take(who, line, value);
        }
    }
    exit(1); /* nobody is there: this is no warm launch */
}

/* --- network cards ---------------------------------------------------------------------------------------------------- */

#define CARDS "/sys/bus/virtio/drivers/virtio_net"
#define SLOTS "/sys/bus/pci/drivers/virtio-pci"
#define MOST_CARDS 8
static char slots[MOST_CARDS][32];
static int slot_count;

static void tell_driver(const char *what, const char *slot) {
    int file = open(what, O_WRONLY | O_CLOEXEC);
    if (file >= 0 && write(file, slot, strlen(slot)) < 0) perror(slot);
    if (file >= 0) close(file);
}

/* Where on the PCI bus a card is: /sys/bus/virtio/drivers/virtio_net/virtio3 -> ../../../../devices/pci0000:00/0000:00:04.0/virtio3 */
static void add_slot(const char *card) {
    char path[512], target[512];
    snprintf(path, sizeof path, CARDS "/%s", card);
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length < 0) return;
    target[length] = 0;
    *strrchr(target, '/') = 0;
    const char *slot = strrchr(target, '/');
    if (slot && strlen(slot + 1) < sizeof slots[0]) strcpy(slots[slot_count++], slot + 1);
}

/* A card without its driver is nobody's. Given to it again, it is reset, and has the clone's own address, also as its permanent one. */
static void let_go_of_cards(void) {
    DIR *driver = opendir(CARDS);
    struct dirent *entry;
    while (driver && (entry = readdir(driver)) && slot_count < MOST_CARDS)
        if (strncmp(entry->d_name, "virtio", 6) == 0) add_slot(entry->d_name);
    if (driver) closedir(driver);
    for (int index = 0; index < slot_count; index++) tell_driver(SLOTS "/unbind", slots[index]);
}

/* A thread of its own: the kernel is busy with a card for as long as everything else takes. */
static sem_t card_wanted, card_there;

static void *take_cards(void *nothing) {
    sem_wait(&card_wanted);
    for (int index = 0; index < slot_count; index++) tell_driver(SLOTS "/bind", slots[index]);
    sem_post(&card_there);
    return nothing;
}

static void prepare_to_take_cards(void) {
    pthread_t thread;
    if (sem_init(&card_wanted, 0, 0) || sem_init(&card_there, 0, 0) || pthread_create(&thread, NULL, take_cards, NULL)) {
        perror("a thread");
        exit(1);
    }
}

/* --- making it so ------------------------------------------------------------------------------------------------------ */

static void reseed(struct identity *who) {
    struct {
        int entropy_count, buf_size;
        unsigned char buf[SEED];
    } pool = {.entropy_count = (int)who->seed_length * 8, .buf_size = (int)who->seed_length};
    memcpy(pool.buf, who->seed, who->seed_length);
    int random = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (random < 0 || ioctl(random, RNDADDENTROPY, &pool) || ioctl(random, RNDRESEEDCRNG)) fail("the random pool");
    close(random);
    explicit_bzero(&pool, sizeof pool);
    explicit_bzero(who->seed, sizeof who->seed);
}

static void name_machine(const struct identity *who) {
    char text[1024];
    snprintf(text, sizeof text, "%s\n", who->machine_id);
    put("/etc/machine-id", text, 0444);
    if (sethostname(who->hostname, strlen(who->hostname))) fail("the host name");
    snprintf(text, sizeof text, "%s\n", who->hostname);
    put("/etc/hostname", text, 0644);
    snprintf(text, sizeof text, "127.0.0.1 localhost\n127.0.1.1 %s.%s %s\n::1 localhost ip6-localhost ip6-loopback\n",
             who->hostname, who->domain, who->hostname);
    put("/etc/hosts", text, 0644);
    /* The kernel gives one boot id for each boot of its own; this boot was another machine's. */
    mkdir("/run/haneul", 0755);
    snprintf(text, sizeof text, "%s\n", who->boot_id);
    put("/run/haneul/boot-id", text, 0444);
    if (mount("/run/haneul/boot-id", "/proc/sys/kernel/random/boot_id", NULL, MS_BIND, NULL)) fail("the boot id");
    put("/run/haneul/instance-id", who->instance, 0444);
    if (who->user_data) put("/run/haneul/user-data", "", 0444);
}

static struct sockaddr_in internet(const char *text) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    if (inet_pton(AF_INET, text, &address.sin_addr) != 1) fail("the address %s", text);
    return address;
}

static void address_machine(const struct identity *who, const char *interface) {
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {0};
    copy(request.ifr_name, sizeof request.ifr_name, interface);
    unsigned char mac[6];
    if (sscanf(who->mac, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) != 6) fail("the MAC");
    if (ioctl(control, SIOCGIFHWADDR, &request)) fail("the interface");
    if (memcmp(request.ifr_hwaddr.sa_data, mac, 6)) {
        errno = EADDRNOTAVAIL;
        fail("the MAC");
    }
    request.ifr_mtu = who->mtu;
    if (who->mtu && ioctl(control, SIOCSIFMTU, &request)) fail("the MTU");
    struct sockaddr_in own = internet(who->address), mask = {.sin_family = AF_INET};
    mask.sin_addr.s_addr = htonl(who->prefix ? 0xFFFFFFFFu << (32 - who->prefix) : 0);
    memcpy(&request.ifr_addr, &own, sizeof own);
    if (ioctl(control, SIOCSIFADDR, &request)) fail("the address");
    memcpy(&request.ifr_netmask, &mask, sizeof mask);
    if (ioctl(control, SIOCSIFNETMASK, &request)) fail("the netmask");
    if (ioctl(control, SIOCGIFFLAGS, &request)) fail("the interface");
    request.ifr_flags |= IFF_UP | IFF_RUNNING;
    if (ioctl(control, SIOCSIFFLAGS, &request)) fail("the interface");
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    struct sockaddr_in gateway = internet(who->gateway), any = {.sin_family = AF_INET};
    memcpy(&route.rt_gateway, &gateway, sizeof gateway);
    memcpy(&route.rt_dst, &any, sizeof any);
    memcpy(&route.rt_genmask, &any, sizeof any);
    route.rt_metric = METRIC + 1; /* as the kernel counts here */
    if (ioctl(control, SIOCADDRT, &route) && errno != EEXIST) fail("the route");
    close(control);
}

static void let_in(const struct identity *who, const char *user) {
    struct passwd *account;
    FILE *accounts = fopen("/etc/passwd", "re");
    while ((account = accounts ? fgetpwent(accounts) : NULL) && strcmp(account->pw_name, user)) continue;
    if (!account) fail("the user %s", user);
    char path[512];
    snprintf(path, sizeof path, "%s/.ssh", account->pw_dir);
    if (mkdir(path, 0700) && errno != EEXIST) fail("%s", path);
    if (chown(path, account->pw_uid, account->pw_gid)) fail("%s", path);
    strcat(path, "/authorized_keys");
    FILE *file = fopen(path, "we");
    if (!file) fail("%s", path);
    for (int index = 0; index < who->key_count; index++) fprintf(file, "%s\n", who->keys[index]);
    fchmod(fileno(file), 0600);
    if (fchown(fileno(file), account->pw_uid, account->pw_gid) || fclose(file)) fail("%s", path);
}

/* So that an SSH server can start at once. One that has other keys (dropbear) makes its own. */
static void give_host_keys(const struct identity *who) {
    char path[128], text[1024];
    for (int index = 0; index < who->host_key_count; index++) {
        const struct host_key *key = &who->host_keys[index];
        snprintf(path, sizeof path, "/etc/ssh/ssh_host_%s_key", key->type);
        put(path, key->private, 0600);
        strcat(path, ".pub");
        snprintf(text, sizeof text, "%s root@%s\n", key->public, who->hostname);
        put(path, text, 0644);
    }
}

/* --- what running processes remember ---------------------------------------------------------------------------------- */

/* libsystemd asks for these once for each process. They are sought here, in the template, and written over in the clone. */
#define MOST_MEMORIES 128
#define FORMS 4
static struct memory {
    int process; /* its /proc/PID/mem, opened already */
    off_t place;
    int form;
} memories[MOST_MEMORIES];
static int memory_count;
/* It has the template's files open, and is replaced soon: until then what is said waits in its sockets. */
static pid_t journal;
static unsigned char old_forms[FORMS][40];
static const size_t form_length[FORMS] = {16, 16, 36, 32}; /* raw boot id, raw machine id, boot id as text, machine id as text */

static void forms_of(const char *boot_id, const char *machine_id, unsigned char forms[FORMS][40]) {
    char digits[40] = "";
    for (const char *one = boot_id; *one && strlen(digits) < 32; one++)
        if (*one != '-') strncat(digits, one, 1);
    from_hex(digits, forms[0], 16);
    from_hex(machine_id, forms[1], 16);
    snprintf((char *)forms[2], 40, "%.36s", boot_id);
    snprintf((char *)forms[3], 40, "%.32s", machine_id);
}

static void read_word(const char *path, char *word, size_t size) {
    FILE *file = fopen(path, "re");
    if (!file || !fgets(word, (int)size, file)) word[0] = 0;
    word[strcspn(word, "\n")] = 0;
    if (file) fclose(file);
}

static void seek_in(int memory, off_t from, off_t to) {
    static unsigned char part[1 << 20];
    for (off_t at = from; at < to; at += sizeof part - 64) {
        ssize_t length = pread(memory, part, to - at < (off_t)sizeof part ? to - at : (off_t)sizeof part, at);
        for (int form = 0; form < FORMS && length > 0; form++)
            for (unsigned char *found = part; (found = memmem(found, part + length - found, old_forms[form], form_length[form])); found++)
                if (memory_count < MOST_MEMORIES) memories[memory_count++] = (struct memory){memory, at + (found - part), form};
    }
}

static void remember_process(pid_t pid) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "re");
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int memory = open(path, O_RDWR | O_CLOEXEC), before = memory_count;
    while (maps && memory >= 0 && fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        char rights[8];
        if (sscanf(line, "%lx-%lx %7s", &from, &to, rights) == 3 && strcmp(rights, "rw-p") == 0) seek_in(memory, from, to);
    }
    if (maps) fclose(maps);
    if (memory >= 0 && memory_count == before) close(memory);
}

static void remember_processes(void) {
    char boot_id[64], machine_id[64];
    read_word("/proc/sys/kernel/random/boot_id", boot_id, sizeof boot_id);
    read_word("/etc/machine-id", machine_id, sizeof machine_id);
    if (strlen(boot_id) != 36 || strlen(machine_id) != 32) return; /* nothing remembers what is not there */
    forms_of(boot_id, machine_id, old_forms);
    DIR *processes = opendir("/proc");
    struct dirent *entry;
    while (processes && (entry = readdir(processes))) {
        char path[300], name[32];
        int pid = atoi(entry->d_name);
        if (pid <= 0 || pid == getpid()) continue;
        remember_process(pid);
        snprintf(path, sizeof path, "/proc/%s/comm", entry->d_name);
        read_word(path, name, sizeof name);
        if (strcmp(name, "systemd-journal") == 0) journal = pid;
    }
    if (processes) closedir(processes);
}

/* What is not what it was is something else by now. */
static void remind_processes(const struct identity *who) {
    unsigned char forms[FORMS][40], there[40];
    forms_of(who->boot_id, who->machine_id, forms);
    for (int index = 0; index < memory_count; index++) {
        const struct memory *one = &memories[index];
        size_t length = form_length[one->form];
        if (pread(one->process, there, length, one->place) == (ssize_t)length && memcmp(there, old_forms[one->form], length) == 0)
            if (pwrite(one->process, forms[one->form], length, one->place) < 0) perror("a process");
    }
}

/* --- the SSH server ---------------------------------------------------------------------------------------------------- */

/* Where user data says who may log in, nobody can before cloud-init has read it, and has the server started again. */
static void close_door(void) {
    char word[32];
    read_word(SSH_SERVER, word, sizeof word);
    int server = atoi(word);
    if (server > 1 && kill(server, SIGTERM)) perror("the SSH server");
}

/* What the kernel and the files say now, not what was asked for. */
static void answer(const char *interface) {
    char hostname[256] = "", machine_id[64] = "", boot_id[64] = "", address[16] = "";
    gethostname(hostname, sizeof hostname - 1);
    FILE *file = fopen("/etc/machine-id", "re");
    if (file && fscanf(file, "%63s", machine_id) != 1) machine_id[0] = 0;
    if (file) fclose(file);
    file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (file && fscanf(file, "%63s", boot_id) != 1) boot_id[0] = 0;
    if (file) fclose(file);
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {0};
    copy(request.ifr_name, sizeof request.ifr_name, interface);
    if (!ioctl(control, SIOCGIFADDR, &request))
        inet_ntop(AF_INET, &((struct sockaddr_in *)&request.ifr_addr)->sin_addr, address, sizeof address);
    close(control);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    fprintf(port, "resumed hostname=%s machine-id=%s boot-id=%s address=%s time=%lld.%09ld spent=%s\n", hostname, machine_id,
            boot_id, address, (long long)now.tv_sec, now.tv_nsec, spent);
    fflush(port);
}

/* A new clock, name and card wake up many; they come afterwards. */
static void before_all_others(int policy, int priority) {
    struct sched_param wanted = {.sched_priority = priority};
    if (sched_setscheduler(0, policy, &wanted)) perror("the priority");
}

/* A port of a virtio-serial device, by the name that the server gave it. -1 if there is none after some seconds. */
static int open_port(const char *name) {
    char path[300], found[64];
    for (int tries = 0; tries < 100; tries++, usleep(100000)) {
        DIR *ports = opendir("/sys/class/virtio-ports");
        struct dirent *entry;
        while (ports && (entry = readdir(ports))) {
            snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
            read_word(path, found, sizeof found);
            if (entry->d_name[0] == '.' || strcmp(found, name)) continue;
            snprintf(path, sizeof path, "/dev/%s", entry->d_name);
            closedir(ports);
            return open(path, O_RDWR | O_CLOEXEC);
        }
        if (ports) closedir(ports);
    }
    errno = ENODEV;
    return -1;
}

int main(int count, char **words) {
    if (count != 5) {
        fputs("usage: resume PORT INTERFACE USER AFTER\n", stderr);
        return 2;
    }
    /* A port can be opened only once. */
    int opened = open_port(words[1]);
    server = opened < 0 ? NULL : fdopen(opened, "r");
    port = server ? fdopen(fcntl(opened, F_DUPFD_CLOEXEC, 0), "w") : NULL;
    if (!port) {
        perror(words[1]);
        return 1;
    }
    let_go_of_cards();
    remember_processes();
    before_all_others(SCHED_FIFO, 10);
    prepare_to_take_cards();
    fputs("waiting 2\n", port);
    fflush(port);
    static struct identity who;
    listen_to_server(&who);
    mark("hear");
    if (journal) kill(journal, SIGSTOP);
    reseed(&who);
    mark("random");
    sem_post(&card_wanted);
    name_machine(&who);
    mark("name");
    remind_processes(&who);
    mark("processes");
    /* User data may want other users than the image's: then cloud-init makes them. */
    if (!who.user_data || strcmp(words[3], "root") == 0) let_in(&who, words[3]);
    unlink(TEMPLATE_HOST_KEY);
    if (who.user_data) close_door();
    else if (access("/etc/ssh/sshd_config", F_OK) == 0) give_host_keys(&who);
    mark("keys");
    sem_wait(&card_there);
    mark("card");
    address_machine(&who, words[2]);
    mark("address");
    ask_time();
    mark("clock");
    answer(words[2]);
    before_all_others(SCHED_OTHER, 0);
    unlink(FLAG);
    if (opened == HANDED_OVER ? fcntl(opened, F_SETFD, 0) : dup2(opened, HANDED_OVER) < 0) perror("the port");
    execl(words[4], words[4], who.instance, (char *)NULL);
    perror(words[4]);
    return 1;
}
