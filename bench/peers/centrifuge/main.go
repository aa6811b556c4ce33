// A server on the centrifuge library: a client is subscribed to the channel of its user when it
// connects, and a POST is published to that channel.
//
//	centrifuge PORT      listens on 127.0.0.1
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/centrifugal/centrifuge"
)

type userKey struct{}

// withUser takes the user from the URL, where every other peer takes it from.
func withUser(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		ctx := context.WithValue(request.Context(), userKey{}, request.URL.Query().Get("token"))
		next.ServeHTTP(w, request.WithContext(ctx))
	})
}

func onConnecting(ctx context.Context, _ centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
	user, _ := ctx.Value(userKey{}).(string)
	return centrifuge.ConnectReply{
		Credentials:   &centrifuge.Credentials{}, // anonymous
		Subscriptions: map[string]centrifuge.SubscribeOptions{user: {}},
	}, nil
}

func servePush(node *centrifuge.Node) http.HandlerFunc {
	return func(w http.ResponseWriter, request *http.Request) {
		var body struct {
			UserID  string          `json:"userId"`
			Message json.RawMessage `json:"message"`
		}
		if request.Method != http.MethodPost {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		if json.NewDecoder(request.Body).Decode(&body) != nil || body.UserID == "" || body.Message == nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if _, err := node.Publish(body.UserID, body.Message); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, "published")
	}
}

func main() {
	node, err := centrifuge.New(centrifuge.DefaultConfig)
	if err != nil {
		log.Fatal(err)
	}
	node.OnConnecting(onConnecting)
	if err := node.Run(); err != nil {
		log.Fatal(err)
	}
	http.Handle("/ws", withUser(centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{})))
	http.HandleFunc("/push", servePush(node))
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
