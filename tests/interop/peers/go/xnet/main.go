// This peer is golang.org/x/net/websocket. It has neither codes, pings nor fragments of its own.
package main

import (
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"

	"golang.org/x/net/websocket"
	"peers/behaviour"
)

type connection struct {
	*websocket.Conn
	tcp    net.Conn
	buffer []byte
}

func newConnection(conn *websocket.Conn, tcp net.Conn) *connection {
	conn.PayloadType = websocket.BinaryFrame
	return &connection{conn, tcp, make([]byte, 65536)}
}

func (c *connection) Receive() ([]byte, error) {
	n, err := c.Read(c.buffer)
	return c.buffer[:n], err
}

func (c *connection) Send(data []byte) error {
	_, err := c.Write(data)
	return err
}

func (c *connection) SendFragments(fragments [][]byte) error { return errors.ErrUnsupported }

func (c *connection) Ping(payload string, done func()) error { return errors.ErrUnsupported }

// Close sends 1000 and ends TCP.
func (c *connection) Close(code int, reason string) error { return c.Conn.Close() }

// Drop does the same, unless it is to abort: the library answers a Close in no other way.
func (c *connection) Drop() {
	if c.Config().Location.Path == "/abort" {
		c.tcp.Close()
	}
	c.Conn.Close()
}

func (c *connection) Subprotocol() string {
	if len(c.Config().Protocol) == 1 {
		return c.Config().Protocol[0]
	}
	return ""
}

func (c *connection) Ended(err error) (int, string, bool) { return 0, "", false }

type library struct{}

func (library) Module() string { return "golang.org/x/net" }

func (library) Accept(
	w http.ResponseWriter, r *http.Request, tcp net.Conn, serve func(behaviour.Connection),
) {
	server := websocket.Server{
		Handshake: func(config *websocket.Config, request *http.Request) error {
			known := slices.Contains(config.Protocol, "bytes")
			config.Protocol = nil
			if known {
				config.Protocol = []string{"bytes"}
			}
			return nil
		},
		Handler: func(conn *websocket.Conn) { serve(newConnection(conn, tcp)) },
	}
	server.ServeHTTP(w, r)
}

func (library) Connect(
	where *url.URL, subprotocols []string, tcp net.Conn,
) (behaviour.Connection, error) {
	config, err := websocket.NewConfig(where.String(), "http://localhost/")
	behaviour.Check(err)
	config.Protocol = subprotocols
	conn, err := websocket.NewClient(config, tcp)
	behaviour.Check(err)
	return newConnection(conn, tcp), nil
}

func main() { behaviour.Run(library{}) }
