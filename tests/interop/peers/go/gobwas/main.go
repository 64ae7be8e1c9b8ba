// This peer is github.com/gobwas/ws, with its wsutil, as its documentation shows it.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	"peers/behaviour"
)

// frames writes whole frames. They come from the reader and from the program.
type frames struct {
	net.Conn
	mutex sync.Mutex
}

func (f *frames) Write(data []byte) (int, error) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return f.Conn.Write(data)
}

type connection struct {
	frames      *frames
	state       ws.State
	reader      *wsutil.Reader
	subprotocol string
	pong        func([]byte)
}

func newConnection(tcp net.Conn, from io.Reader, state ws.State, subprotocol string) *connection {
	c := &connection{frames: &frames{Conn: tcp}, state: state, subprotocol: subprotocol}
	c.reader = &wsutil.Reader{
		Source:         from,
		State:          state,
		OnIntermediate: wsutil.ControlFrameHandler(c.frames, state),
	}
	return c
}

func (c *connection) Receive() ([]byte, error) {
	for {
		header, err := c.reader.NextFrame()
		if err != nil {
			return nil, err
		}
		if !header.OpCode.IsControl() {
			return io.ReadAll(c.reader)
		}
		if header.OpCode == ws.OpPong && c.pong != nil {
			payload, err := io.ReadAll(c.reader)
			if err != nil {
				return nil, err
			}
			c.pong(payload)
		} else if err := wsutil.ControlFrameHandler(c.frames, c.state)(header, c.reader); err != nil {
			return nil, err
		}
	}
}

func (c *connection) write(frame ws.Frame) error {
	if c.state.ClientSide() {
		frame = ws.MaskFrame(frame)
	}
	data, err := ws.CompileFrame(frame)
	if err == nil {
		_, err = c.frames.Write(data)
	}
	return err
}

func (c *connection) Send(data []byte) error { return c.write(ws.NewBinaryFrame(data)) }

func (c *connection) SendFragments(fragments [][]byte) error {
	for index, fragment := range fragments {
		kind := ws.OpBinary
		if index > 0 {
			kind = ws.OpContinuation
		}
		if err := c.write(ws.NewFrame(kind, index == len(fragments)-1, fragment)); err != nil {
			return err
		}
	}
	return nil
}

func (c *connection) Ping(payload string, done func()) error {
	c.pong = func(got []byte) {
		if bytes.Equal(got, []byte(payload)) {
			done()
		}
	}
	return c.write(ws.NewPingFrame([]byte(payload)))
}

func (c *connection) Close(code int, reason string) error {
	return c.write(ws.NewCloseFrame(ws.NewCloseFrameBody(ws.StatusCode(code), reason)))
}

func (c *connection) Drop() { c.frames.Close() }

func (c *connection) Subprotocol() string { return c.subprotocol }

func (c *connection) Ended(err error) (int, string, bool) {
	var closed wsutil.ClosedError
	ok := errors.As(err, &closed)
	return int(closed.Code), closed.Reason, ok
}

type library struct{}

func (library) Module() string { return "github.com/gobwas/ws" }

func (library) Accept(
	w http.ResponseWriter, r *http.Request, tcp net.Conn, serve func(behaviour.Connection),
) {
	upgrader := ws.HTTPUpgrader{Protocol: func(name string) bool { return name == "bytes" }}
	accepted, buffered, handshake, err := upgrader.Upgrade(r, w)
	behaviour.Check(err)
	serve(newConnection(accepted, buffered, ws.StateServerSide, handshake.Protocol))
}

func (library) Connect(
	where *url.URL, subprotocols []string, tcp net.Conn,
) (behaviour.Connection, error) {
	plain := *where // The connection has TLS already.
	plain.Scheme = "ws"
	dialer := ws.Dialer{
		Protocols: subprotocols,
		NetDial:   func(ctx context.Context, network, address string) (net.Conn, error) { return tcp, nil },
	}
	_, buffered, handshake, err := dialer.Dial(context.Background(), plain.String())
	if buffered == nil {
		buffered = bufio.NewReader(tcp)
	}
	return newConnection(tcp, buffered, ws.StateClientSide, handshake.Protocol), err
}

func main() { behaviour.Run(library{}) }
