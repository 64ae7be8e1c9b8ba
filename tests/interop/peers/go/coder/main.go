// This peer is NetConn of github.com/coder/websocket, once nhooyr.io/websocket. With limit=1 in a URL's
// query it is the library's Read of messages, with its limit.
package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"

	"github.com/coder/websocket"
	"peers/behaviour"
)

var background = context.Background()

type connection struct {
	*websocket.Conn
	tcp    net.Conn
	conn   net.Conn // It is nil if there is a limit.
	buffer []byte
}

func newConnection(where *url.URL, websocketConn *websocket.Conn, tcp net.Conn) *connection {
	c := &connection{Conn: websocketConn, tcp: tcp, buffer: make([]byte, 65536)}
	if !where.Query().Has("limit") {
		c.conn = websocket.NetConn(background, c.Conn, websocket.MessageBinary)
	}
	return c
}

func (c *connection) Receive() ([]byte, error) {
	if c.conn == nil {
		_, data, err := c.Read(background)
		return data, err
	}
	n, err := c.conn.Read(c.buffer)
	return c.buffer[:n], err
}

func (c *connection) Send(data []byte) error {
	if c.conn == nil {
		return c.Write(background, websocket.MessageBinary, data)
	}
	_, err := c.conn.Write(data)
	return err
}

func (c *connection) SendFragments(fragments [][]byte) error {
	writer, err := c.Writer(background, websocket.MessageBinary)
	if err != nil {
		return err
	}
	return behaviour.WriteAll(writer, fragments)
}

// Ping has a payload that the library chooses: a counter.
func (c *connection) Ping(payload string, done func()) error {
	go func() {
		if c.Conn.Ping(background) == nil {
			done()
		}
	}()
	return nil
}

func (c *connection) Close(code int, reason string) error {
	return c.Conn.Close(websocket.StatusCode(code), reason)
}

func (c *connection) Drop() { c.tcp.Close() }

func (c *connection) Ended(err error) (int, string, bool) {
	var closed websocket.CloseError
	ok := errors.As(err, &closed)
	return int(closed.Code), closed.Reason, ok
}

type library struct{}

func (library) Module() string { return "github.com/coder/websocket" }

func (library) Accept(
	w http.ResponseWriter, r *http.Request, tcp net.Conn, serve func(behaviour.Connection),
) {
	accepted, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"bytes"}})
	behaviour.Check(err)
	serve(newConnection(r.URL, accepted, tcp))
}

func (library) Connect(
	where *url.URL, subprotocols []string, tcp net.Conn,
) (behaviour.Connection, error) {
	dial := func(ctx context.Context, network, address string) (net.Conn, error) { return tcp, nil }
	transport := &http.Transport{DialContext: dial, DialTLSContext: dial}
	client := &http.Client{Transport: transport}
	options := &websocket.DialOptions{HTTPClient: client, Subprotocols: subprotocols}
	dialed, _, err := websocket.Dial(background, where.String(), options)
	return newConnection(where, dialed, tcp), err
}

func main() { behaviour.Run(library{}) }
