// Push by user and event, the design S0: a connection registers, a POST is written to the
// connections of that user and event one after the other, in the goroutine of the request.
//
//	go_push PORT      listens on 127.0.0.1
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"sync"

	"github.com/gorilla/websocket"
)

type registration struct {
	Token string `json:"token"`
	Event string `json:"event"`
}

type push struct {
	UserID  string `json:"userId"`
	Event   string `json:"event"`
	Message string `json:"message"`
}

// A connection takes one writer at a time.
type connection struct {
	*websocket.Conn
	writing sync.Mutex
	key     registration // the user is the token
}

func (c *connection) send(message []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.WriteMessage(websocket.TextMessage, message)
}

type registry struct {
	sync.RWMutex
	connections map[registration]map[*connection]struct{}
}

// bind registers a connection once; a later registration is a no-op.
func (r *registry) bind(c *connection, key registration) {
	if key.Token == "" || key.Event == "" {
		return
	}
	r.Lock()
	defer r.Unlock()
	if c.key != (registration{}) {
		return
	}
	c.key = key
	if r.connections[key] == nil {
		r.connections[key] = map[*connection]struct{}{}
	}
	r.connections[key][c] = struct{}{}
}

func (r *registry) unbind(c *connection) {
	r.Lock()
	defer r.Unlock()
	delete(r.connections[c.key], c)
	if len(r.connections[c.key]) == 0 {
		delete(r.connections, c.key)
	}
}

func (r *registry) of(key registration) []*connection {
	r.RLock()
	defer r.RUnlock()
	found := make([]*connection, 0, len(r.connections[key]))
	for c := range r.connections[key] {
		found = append(found, c)
	}
	return found
}

var (
	registered = registry{connections: map[registration]map[*connection]struct{}{}}
	upgrader   = websocket.Upgrader{
		ReadBufferSize:  1024,
		WriteBufferSize: 1024,
		CheckOrigin:     func(*http.Request) bool { return true },
	}
)

func serveWebSocket(w http.ResponseWriter, request *http.Request) {
	socket, err := upgrader.Upgrade(w, request, nil)
	if err != nil {
		return
	}
	c := &connection{Conn: socket}
	defer socket.Close()
	defer registered.unbind(c)
	query := request.URL.Query()
	registered.bind(c, registration{query.Get("token"), query.Get("event")})
	for {
		_, text, err := socket.ReadMessage()
		if err != nil {
			return
		}
		var key registration
		if json.Unmarshal(text, &key) == nil {
			registered.bind(c, key)
		}
	}
}

func servePush(w http.ResponseWriter, request *http.Request) {
	if request.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	var p push
	err := json.NewDecoder(request.Body).Decode(&p)
	if err != nil || p.UserID == "" || p.Event == "" || p.Message == "" {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, "request data illegal")
		return
	}
	count := 0
	for _, c := range registered.of(registration{p.UserID, p.Event}) {
		if c.send([]byte(p.Message)) == nil {
			count++
		} else {
			registered.unbind(c)
		}
	}
	fmt.Fprintf(w, "message sent to %d clients", count)
}

func main() {
	http.HandleFunc("/ws", serveWebSocket)
	http.HandleFunc("/push", servePush)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
