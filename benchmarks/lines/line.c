/* Pass connections on as a slow line would:
 *
 *     line HOST LISTEN TARGET LATENCY RATE RESETS
 *
 * What a client sends goes on LATENCY seconds late, the first of a connection twice as late, since
 * a real line takes as long to connect. Answers of all connections together go back at RATE bytes a
 * second, 0 for as fast as may be. A request is followed by a reset with the probability RESETS: one
 * half before it is answered, one half in the midst of the answer.
 *
 * One thread. Of a connection at most PIECE bytes of an answer wait at a time.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 1 << 16, EVENTS = 256 };
static const double BURST = 0.002; /* s of the line that may be made up for after a late wake-up */

struct piece {
    struct piece *next;
    double due;
    size_t size, sent;
    char bytes[];
};

struct connection;

struct end {
    struct connection *of;
    int fd, wanted;
};

struct connection {
    struct connection *next, *before;
    struct end client, server;
    struct piece *first, *last;        /* of requests */
    char *answer;                      /* one piece of an answer, or size 0 */
    size_t size, sent;
    double due;
    int used, ended, dead;
    enum { SOUND, BEFORE, AMIDST } fate;
};

static struct connection *all, *buried;
static int poll_fd;
static double latency, rate, resets, line_free;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void want(struct end *end, int events) {
    if (end->wanted == events) return;
    struct epoll_event event = {.events = events, .data.ptr = end};
    epoll_ctl(poll_fd, EPOLL_CTL_MOD, end->fd, &event);
    end->wanted = events;
}

static void finish(struct connection *c, int reset) {
    if (c->dead) return;
    struct linger at_once = {1, 0};
    if (reset) setsockopt(c->client.fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(c->client.fd);
    close(c->server.fd);
    if (c->before) c->before->next = c->next; else all = c->next;
    if (c->next) c->next->before = c->before;
    c->dead = 1;
    c->next = buried; /* events of this turn may still point here */
    buried = c;
}

static void bury(void) {
    while (buried) {
        struct connection *c = buried;
        buried = c->next;
        while (c->first) {
            struct piece *p = c->first;
            c->first = p->next;
            free(p);
        }
        free(c->answer);
        free(c);
    }
}

static int opened(struct connection *c, struct end *end, int fd) {
    int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    *end = (struct end){.of = c, .fd = fd, .wanted = EPOLLIN};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = end};
    return epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
}

static void connect_on(int listening, const struct sockaddr_in *target) {
    int client = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
    if (client < 0) return;
    int server = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(server, (const struct sockaddr *)target, sizeof *target) < 0) {
        close(client);
        close(server);
        return;
    }
    struct connection *c = calloc(1, sizeof *c);
    c->answer = malloc(PIECE);
    opened(c, &c->client, client);
    opened(c, &c->server, server);
    c->next = all;
    if (all) all->before = c;
    all = c;
}

static void take_request(struct connection *c) {
    struct piece *p = malloc(sizeof *p + PIECE);
    ssize_t got = recv(c->client.fd, p->bytes, PIECE, MSG_DONTWAIT);
    if (got <= 0) {
        free(p);
        if (got == 0 || errno != EAGAIN) finish(c, 0);
        return;
    }
    *p = (struct piece){.due = now() + latency * (c->used ? 1 : 2), .size = got};
    c->used = 1;
    if (c->last && c->first) c->last->next = p; else c->first = p;
    c->last = p;
    if (drand48() < resets) c->fate = drand48() < 0.5 ? BEFORE : AMIDST;
}

static void take_answer(struct connection *c) {
    ssize_t got = recv(c->server.fd, c->answer, PIECE, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        finish(c, 0);
        return;
    }
    double t = now();
    if (line_free < t - BURST) line_free = t - BURST;
    if (rate > 0) line_free += got / rate; else line_free = t;
    c->due = line_free;
    c->size = c->fate == AMIDST ? (got + 1) / 2 : got;
    c->sent = 0;
    want(&c->server, 0); /* until this piece is through */
}

static void give_answer(struct connection *c) {
    ssize_t put = send(c->client.fd, c->answer + c->sent, c->size - c->sent,
                       MSG_DONTWAIT | MSG_NOSIGNAL);
    if (put < 0 && errno != EAGAIN) {
        finish(c, 0);
        return;
    }
    if (put > 0) c->sent += put;
    if (c->sent < c->size) {
        want(&c->client, EPOLLIN | EPOLLOUT);
        return;
    }
    c->size = 0;
    if (c->fate == AMIDST) {
        finish(c, 1);
        return;
    }
    want(&c->client, EPOLLIN);
    want(&c->server, EPOLLIN);
}

static void give_requests(struct connection *c, double t) {
    while (c->first && c->first->due <= t) {
        struct piece *p = c->first;
        if (c->fate == BEFORE) {
            finish(c, 1);
            return;
        }
        ssize_t put = send(c->server.fd, p->bytes + p->sent, p->size - p->sent,
                           MSG_DONTWAIT | MSG_NOSIGNAL);
        if (put < 0 && errno != EAGAIN) {
            finish(c, 0);
            return;
        }
        if (put > 0) p->sent += put;
        if (p->sent < p->size) {
            p->due = t + 0.0005;
            return;
        }
        c->first = p->next;
        free(p);
    }
}

/* Do what is due; seconds until something else is, or a long while. */
static double attend(void) {
    double t = now(), soonest = t + 3600;
    struct connection *next;
    for (struct connection *c = all; c; c = next) {
        next = c->next;
        if (c->size && c->due <= t && !(c->client.wanted & EPOLLOUT)) give_answer(c);
        if (!c->dead) give_requests(c, t);
        if (c->dead) continue;
        if (c->size && !(c->client.wanted & EPOLLOUT) && c->due < soonest) soonest = c->due;
        if (c->first && c->first->due < soonest) soonest = c->first->due;
    }
    double left = soonest - now();
    return left > 0 ? left : 0;
}

int main(int count, char **given) {
    if (count != 7) return 2;
    signal(SIGPIPE, SIG_IGN);
    srand48(1);
    latency = atof(given[4]);
    rate = atof(given[5]);
    resets = atof(given[6]);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(given[2]))}, target = at;
    if (!inet_aton(given[1], &at.sin_addr)) return 2;
    target.sin_addr = at.sin_addr;
    target.sin_port = htons(atoi(given[3]));
    int yes = 1, listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listening, (struct sockaddr *)&at, sizeof at) < 0 || listen(listening, 1024) < 0) {
        perror("line");
        return 1;
    }
    poll_fd = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, listening, &event);
    for (;;) {
        double left = attend();
        bury();
        struct timespec wait = {(time_t)left, (long)((left - (time_t)left) * 1e9)};
        int found = epoll_pwait2(poll_fd, events, EVENTS, &wait, NULL);
        for (int i = 0; i < found; i++) {
            struct end *end = events[i].data.ptr;
            if (!end) {
                connect_on(listening, &target);
                continue;
            }
            struct connection *c = end->of;
            if (c->dead) continue;
            if (end == &c->server) {
                if (!c->size) take_answer(c);
            } else {
                if (events[i].events & EPOLLOUT) give_answer(c);
                if (!c->dead && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) take_request(c);
            }
        }
    }
}
