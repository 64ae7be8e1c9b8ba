// NetConn of nhooyr.io/websocket (now github.com/coder/websocket); see the package tests.interop.
//
// A report has one thing more: "end", the error of NetConn's last Read.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"

	"nhooyr.io/websocket"
)

// What goes one way.
type count struct {
	hash hash.Hash
	size int
}

func newCount() *count { return &count{hash: sha256.New()} }

func (c *count) add(data []byte) {
	c.hash.Write(data)
	c.size += len(data)
}

func (c *count) sha256() string { return hex.EncodeToString(c.hash.Sum(nil)) }

func tell(facts map[string]interface{}) {
	line, err := json.Marshal(facts)
	check(err)
	os.Stdout.Write(append(line, '\n'))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// behave does what the URL asks for until the connection's end, and tells of it. tcp is what the
// connection runs over.
func behave(where *url.URL, connection *websocket.Conn, tcp net.Conn) {
	query := where.Query()
	if query.Get("limit") != "default" {
		connection.SetReadLimit(math.MaxInt64 - 1)
	}
	conn := websocket.NetConn(context.Background(), connection, websocket.MessageBinary)
	received, sent := newCount(), newCount()
	buffer := make([]byte, 65536)
	var late interface{}
	var end error

	receive := func() []byte {
		n, err := conn.Read(buffer)
		received.add(buffer[:n])
		end = err
		return buffer[:n]
	}
	send := func(data []byte) {
		sent.add(data)
		conn.Write(data)
	}

	switch where.Path {
	case "/echo":
		for end == nil {
			if data := receive(); len(data) > 0 {
				send(data)
			}
		}
	case "/receive":
		for end == nil {
			receive()
		}
		late = "sent"
		if _, err := conn.Write([]byte("late")); err != nil {
			late = err.Error()
		}
	case "/send":
		for _, text := range strings.Split(query.Get("sizes"), ",") {
			size, err := strconv.Atoi(text)
			check(err)
			data := make([]byte, size)
			rand.Read(data)
			send(data)
		}
		conn.Close()
	case "/close":
		receive()
		code, err := strconv.Atoi(query.Get("code"))
		check(err)
		connection.Close(websocket.StatusCode(code), query.Get("reason"))
	case "/ping":
		receive()
		go func() {
			if connection.Ping(context.Background()) == nil {
				send([]byte("pong"))
			}
		}()
	case "/abort":
		receive()
		tcp.Close()
	}
	for end == nil {
		receive()
	}

	report := map[string]interface{}{
		"id":              query.Get("id"),
		"code":            nil,
		"reason":          nil,
		"subprotocol":     connection.Subprotocol(),
		"received":        received.size,
		"received_sha256": received.sha256(),
		"sent":            sent.size,
		"sent_sha256":     sent.sha256(),
		"late":            late,
		"end":             end.Error(),
	}
	_, _, err := connection.Reader(context.Background())
	var closed websocket.CloseError
	if errors.As(err, &closed) {
		report["code"], report["reason"] = int(closed.Code), closed.Reason
	}
	tell(report)
}

// serve returns the port.
func serve(start func(*http.Server, net.Listener) error) int {
	type key struct{}
	server := &http.Server{
		ConnContext: func(ctx context.Context, tcp net.Conn) context.Context {
			return context.WithValue(ctx, key{}, tcp)
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			options := &websocket.AcceptOptions{Subprotocols: []string{"bytes"}}
			connection, err := websocket.Accept(w, r, options)
			check(err)
			behave(r.URL, connection, r.Context().Value(key{}).(net.Conn))
		}),
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go start(server, listener)
	return listener.Addr().(*net.TCPAddr).Port
}

func connect(text string, roots *x509.CertPool) {
	where, err := url.Parse(text)
	check(err)
	var tcp net.Conn
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			tcp = conn
			return conn, err
		},
	}
	options := &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}}
	if names := where.Query().Get("subprotocols"); names != "" {
		options.Subprotocols = strings.Split(names, ",")
	}
	connection, _, err := websocket.Dial(context.Background(), text, options)
	check(err)
	behave(where, connection, tcp)
}

func main() {
	certificate, authority := os.Args[1], os.Args[2]
	pem, err := os.ReadFile(authority)
	check(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)

	tell(map[string]interface{}{
		"version": runtime.Version(),
		"port":    serve((*http.Server).Serve),
		"tls_port": serve(func(server *http.Server, listener net.Listener) error {
			return server.ServeTLS(listener, certificate, certificate)
		}),
	})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		go connect(lines.Text(), roots)
	}
	if err := lines.Err(); err != nil && err != io.EOF {
		log.Fatal(err)
	}
}
