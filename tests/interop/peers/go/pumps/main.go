// A tunnel of NetConn of github.com/coder/websocket and two pumps, for tests and benchmarks.
//
//	pumps serve host:port    a WebSocket server; each connection goes on to TCP
//	pumps listen url         a TCP server; each connection goes on to a WebSocket
//
// It listens on a free port, or on the address that follows, and says where.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/coder/websocket"
	"peers/behaviour"
)

var background = context.Background()

// join passes on all that comes, both ways, until one end says no more.
func join(a, b net.Conn) {
	done := make(chan struct{}, 2)
	pump := func(to, from net.Conn) {
		io.Copy(to, from)
		done <- struct{}{}
	}
	go pump(a, b)
	go pump(b, a)
	<-done
	a.Close()
	b.Close()
}

func main() {
	kind, target := os.Args[1], os.Args[2]
	address := "127.0.0.1:0"
	if len(os.Args) > 3 {
		address = os.Args[3]
	}
	listener, err := net.Listen("tcp", address)
	behaviour.Check(err)
	fmt.Println("listening on", listener.Addr())

	if kind == "serve" {
		log.Fatal(http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			accepted, err := websocket.Accept(w, r, nil)
			behaviour.Check(err)
			tcp, err := net.Dial("tcp", target)
			behaviour.Check(err)
			join(websocket.NetConn(background, accepted, websocket.MessageBinary), tcp)
		})))
	}
	for {
		tcp, err := listener.Accept()
		behaviour.Check(err)
		go func() {
			dialed, _, err := websocket.Dial(background, target, nil)
			behaviour.Check(err)
			join(tcp, websocket.NetConn(background, dialed, websocket.MessageBinary))
		}()
	}
}
