// This peer is github.com/gorilla/websocket.
package main

import (
	"errors"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/gorilla/websocket"
	"peers/behaviour"
)

type connection struct{ *websocket.Conn }

func (c connection) Receive() ([]byte, error) {
	_, data, err := c.ReadMessage()
	return data, err
}

func (c connection) Send(data []byte) error { return c.WriteMessage(websocket.BinaryMessage, data) }

// SendFragments has frames as large as the library's buffer makes them.
func (c connection) SendFragments(fragments [][]byte) error {
	writer, err := c.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return err
	}
	return behaviour.WriteAll(writer, fragments)
}

func (c connection) control(kind int, data []byte) error {
	return c.WriteControl(kind, data, time.Now().Add(time.Second))
}

func (c connection) Ping(payload string, done func()) error {
	c.SetPongHandler(func(text string) error {
		if text == payload {
			done()
		}
		return nil
	})
	return c.control(websocket.PingMessage, []byte(payload))
}

func (c connection) Close(code int, reason string) error {
	return c.control(websocket.CloseMessage, websocket.FormatCloseMessage(code, reason))
}

func (c connection) Drop() { c.Conn.Close() }

func (c connection) Ended(err error) (int, string, bool) {
	var closed *websocket.CloseError
	if !errors.As(err, &closed) || closed.Code == websocket.CloseAbnormalClosure {
		return 0, "", false
	}
	return closed.Code, closed.Text, true
}

type library struct{}

func (library) Module() string { return "github.com/gorilla/websocket" }

func (library) Accept(
	w http.ResponseWriter, r *http.Request, tcp net.Conn, serve func(behaviour.Connection),
) {
	upgrader := &websocket.Upgrader{Subprotocols: []string{"bytes"}}
	accepted, err := upgrader.Upgrade(w, r, nil)
	behaviour.Check(err)
	serve(connection{accepted})
}

func (library) Connect(
	where *url.URL, subprotocols []string, tcp net.Conn,
) (behaviour.Connection, error) {
	header := http.Header{}
	for _, name := range subprotocols {
		header.Add("Sec-WebSocket-Protocol", name)
	}
	plain := *where // The connection has TLS already.
	plain.Scheme = "ws"
	client, _, err := websocket.NewClient(tcp, &plain, header, 4096, 4096)
	return connection{client}, err
}

func main() { behaviour.Run(library{}) }
