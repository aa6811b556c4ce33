/* The limit: what one core can do at best without joining writes.
 *
 * A push is framed once, then sent with one send(2) to every open WebSocket. One thread, epoll,
 * non-blocking sockets, no queues: a client whose socket buffer is full misses that frame, and
 * one that takes only a part of a frame is closed, because its stream could not go on.
 * What clients send is read and thrown away, except a close frame, which is answered.
 *
 *     limit PORT      listens on 127.0.0.1
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FDS = 65536, INPUT_BYTES = 1 << 20, EVENTS = 256, BACKLOG = 4096 };

/* A connection by its descriptor. `partial` holds an unfinished HTTP request, else NULL. */
static struct connection {
    char *partial;
    size_t partial_bytes;
    int websocket; /* its place in `websockets` + 1, or 0 */
} connections[MAX_FDS];

static int websockets[MAX_FDS], websocket_count, epoll_fd;
static char input[INPUT_BYTES + 1], frame[INPUT_BYTES + 10];

static void close_connection(int fd) {
    struct connection *connection = &connections[fd];
    if (connection->websocket) {
        int place = connection->websocket - 1, last = websockets[--websocket_count];
        websockets[place] = last;
        connections[last].websocket = place + 1;
    }
    free(connection->partial);
    *connection = (struct connection){0};
    close(fd);
}

static size_t build_frame(const char *payload, size_t bytes) {
    size_t head = 2;
    frame[0] = (char)0x81; /* the only fragment of a text message */
    if (bytes < 126) {
        frame[1] = (char)bytes;
    } else if (bytes <= UINT16_MAX) {
        uint16_t length = htons((uint16_t)bytes);
        frame[1] = 126;
        memcpy(frame + 2, &length, 2);
        head = 4;
    } else {
        uint64_t length = htobe64(bytes);
        frame[1] = 127;
        memcpy(frame + 2, &length, 8);
        head = 10;
    }
    memcpy(frame + head, payload, bytes);
    return head + bytes;
}

/* Send the frame to every WebSocket; return how many took all of it. */
static int send_to_all(size_t bytes) {
    int sent_count = 0;
    for (int i = websocket_count - 1; i >= 0; i--) { /* backwards: closing moves the last one here */
        ssize_t sent = send(websockets[i], frame, bytes, MSG_NOSIGNAL);
        if (sent == (ssize_t)bytes)
            sent_count++;
        else if (sent >= 0 || errno != EAGAIN)
            close_connection(websockets[i]);
    }
    return sent_count;
}

/* Every send below is to a publisher or a newcomer, whose socket buffer is empty. */
static int reply(int fd, const char *text, int bytes) {
    return send(fd, text, (size_t)bytes, MSG_NOSIGNAL) == bytes;
}

static int refuse(int fd) {
    static const char text[] = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    reply(fd, text, sizeof text - 1);
    return 0;
}

static int push(int fd, const char *body) {
    const char *text = strstr(body, "\"message\"");
    text = text ? strchr(text + 9, ':') : NULL;
    text = text ? strchr(text, '"') : NULL;
    const char *end = text ? strchr(text + 1, '"') : NULL;
    if (!end)
        return refuse(fd);
    char content[64], response[128];
    int sent_count = send_to_all(build_frame(text + 1, (size_t)(end - text - 1)));
    int bytes = snprintf(content, sizeof content, "message sent to %d clients", sent_count);
    bytes = snprintf(response, sizeof response, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", bytes, content);
    return reply(fd, response, bytes);
}

/* Answer an opening handshake (RFC 6455, section 4.2.2). */
static int upgrade(int fd, const char *head) {
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    char key[24 + sizeof guid], accept[32], response[192];
    unsigned char digest[SHA_DIGEST_LENGTH];
    const char *value = strcasestr(head, "\r\nSec-WebSocket-Key:");
    if (!value)
        return refuse(fd);
    value += 20;
    value += strspn(value, " ");
    if (strcspn(value, " \r") != 24)
        return refuse(fd);
    snprintf(key, sizeof key, "%.24s%s", value, guid);
    SHA1((unsigned char *)key, strlen(key), digest);
    EVP_EncodeBlock((unsigned char *)accept, digest, sizeof digest);
    int bytes = snprintf(response, sizeof response,
                         "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         "Sec-WebSocket-Accept: %s\r\n\r\n",
                         accept);
    if (!reply(fd, response, bytes))
        return 0;
    websockets[websocket_count++] = fd;
    connections[fd].websocket = websocket_count;
    return 1;
}

/* Serve the first request in `text`, which ends in a NUL.
 * Return the bytes it took, 0 when it is unfinished, -1 when the connection is to be closed. */
static ssize_t serve_request(int fd, char *text, size_t bytes) {
    char *end = strstr(text, "\r\n\r\n");
    if (!end)
        return 0;
    size_t head_bytes = (size_t)(end - text) + 4;
    if (strncmp(text, "GET ", 4) == 0)
        return upgrade(fd, text) ? (ssize_t)head_bytes : -1;
    const char *length = strcasestr(text, "\r\nContent-Length:");
    size_t body_bytes = length && length < end ? strtoul(length + 17, NULL, 10) : 0;
    if (strncmp(text, "POST /push ", 11) != 0 || body_bytes > INPUT_BYTES - head_bytes)
        return refuse(fd) - 1;
    if (bytes < head_bytes + body_bytes)
        return 0;
    char *after = text + head_bytes + body_bytes, saved = *after;
    *after = '\0';
    int served = push(fd, text + head_bytes);
    *after = saved;
    return served ? (ssize_t)(head_bytes + body_bytes) : -1;
}

static void on_readable(int fd) {
    struct connection *connection = &connections[fd];
    size_t kept = connection->partial_bytes;
    if (kept)
        memcpy(input, connection->partial, kept);
    ssize_t received = recv(fd, input + kept, INPUT_BYTES - kept, 0);
    if (received < 0 && errno == EAGAIN)
        return;
    if (received <= 0) {
        close_connection(fd);
        return;
    }
    if (connection->websocket) {
        if ((input[0] & 0x0f) == 8) {
            reply(fd, "\x88\x00", 2);
            close_connection(fd);
        }
        return;
    }
    size_t bytes = kept + (size_t)received, used = 0;
    input[bytes] = '\0';
    while (used < bytes && !connection->websocket) {
        ssize_t taken = serve_request(fd, input + used, bytes - used);
        if (taken < 0) {
            close_connection(fd);
            return;
        }
        if (taken == 0)
            break;
        used += (size_t)taken;
    }
    free(connection->partial);
    connection->partial = NULL;
    connection->partial_bytes = connection->websocket ? 0 : bytes - used;
    if (connection->partial_bytes) {
        connection->partial = malloc(connection->partial_bytes);
        memcpy(connection->partial, input + used, connection->partial_bytes);
    }
}

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (fd >= MAX_FDS || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
            close(fd);
    }
}

int main(int argc, char **argv) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)atoi(argc == 2 ? argv[1] : "0")),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, BACKLOG) < 0) {
        perror("limit");
        return 1;
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, ready[EVENTS];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(epoll_fd, ready, EVENTS, -1);
        for (int i = 0; i < count; i++)
            ready[i].data.fd == listener ? accept_all(listener) : on_readable(ready[i].data.fd);
    }
}
