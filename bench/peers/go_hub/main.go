// The hub, the design S4: one goroutine owns the set of clients; each client has a read pump,
// a write pump and a queue, and every message goes to everybody, its sender included.
//
//	go_hub PORT      listens on 127.0.0.1
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/gorilla/websocket"
)

const (
	sendQueue    = 256
	messageBytes = 512 // of what clients send
	pingInterval = 54 * time.Second
	pongWait     = 60 * time.Second
	writeWait    = 10 * time.Second
)

type client struct {
	socket *websocket.Conn
	send   chan []byte
}

type broadcast struct {
	message []byte
	count   chan int // gets the number of clients that it was queued for; nil: nobody asks
}

type hub struct {
	clients    map[*client]struct{}
	register   chan *client
	unregister chan *client
	broadcast  chan broadcast
}

func (h *hub) run() {
	for {
		select {
		case c := <-h.register:
			h.clients[c] = struct{}{}
		case c := <-h.unregister:
			h.drop(c)
		case b := <-h.broadcast:
			for c := range h.clients {
				select {
				case c.send <- b.message:
				default:
					h.drop(c)
				}
			}
			if b.count != nil {
				b.count <- len(h.clients)
			}
		}
	}
}

// drop makes the write pump send a close frame and end; its read pump then ends too.
func (h *hub) drop(c *client) {
	if _, found := h.clients[c]; found {
		delete(h.clients, c)
		close(c.send)
	}
}

func (c *client) readPump(h *hub) {
	defer func() {
		h.unregister <- c
		c.socket.Close()
	}()
	c.socket.SetReadLimit(messageBytes)
	c.socket.SetReadDeadline(time.Now().Add(pongWait))
	c.socket.SetPongHandler(func(string) error { return c.socket.SetReadDeadline(time.Now().Add(pongWait)) })
	for {
		_, message, err := c.socket.ReadMessage()
		if err != nil {
			return
		}
		message = bytes.TrimSpace(bytes.ReplaceAll(message, []byte("\n"), []byte(" ")))
		h.broadcast <- broadcast{message: message}
	}
}

func (c *client) writePump() {
	ticker := time.NewTicker(pingInterval)
	defer ticker.Stop()
	defer c.socket.Close()
	for {
		select {
		case message, open := <-c.send:
			c.socket.SetWriteDeadline(time.Now().Add(writeWait))
			if !open {
				c.socket.WriteMessage(websocket.CloseMessage, nil)
				return
			}
			if c.socket.WriteMessage(websocket.TextMessage, message) != nil {
				return
			}
		case <-ticker.C:
			c.socket.SetWriteDeadline(time.Now().Add(writeWait))
			if c.socket.WriteMessage(websocket.PingMessage, nil) != nil {
				return
			}
		}
	}
}

var upgrader = websocket.Upgrader{
	ReadBufferSize:  1024,
	WriteBufferSize: 1024,
	CheckOrigin:     func(*http.Request) bool { return true },
}

func (h *hub) serveWebSocket(w http.ResponseWriter, request *http.Request) {
	socket, err := upgrader.Upgrade(w, request, nil)
	if err != nil {
		return
	}
	c := &client{socket: socket, send: make(chan []byte, sendQueue)}
	h.register <- c
	go c.writePump()
	go c.readPump(h)
}

func (h *hub) servePush(w http.ResponseWriter, request *http.Request) {
	var body struct {
		Message string `json:"message"`
	}
	if request.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	if json.NewDecoder(request.Body).Decode(&body) != nil || body.Message == "" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	count := make(chan int, 1)
	h.broadcast <- broadcast{[]byte(body.Message), count}
	fmt.Fprintf(w, "message sent to %d clients", <-count)
}

func main() {
	h := &hub{
		clients:    map[*client]struct{}{},
		register:   make(chan *client),
		unregister: make(chan *client),
		broadcast:  make(chan broadcast),
	}
	go h.run()
	http.HandleFunc("/ws", h.serveWebSocket)
	http.HandleFunc("/push", h.servePush)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
