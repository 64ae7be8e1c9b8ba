// Package behaviour is what every peer in Go does with a connection. The package tests.interop has the list.
//
// A report has one thing more: "end", the error of the last read.
package behaviour

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"hash"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// Connection is a WebSocket of any library.
type Connection interface {
	// Receive gives a message, or a part of one.
	Receive() ([]byte, error)
	Send(data []byte) error
	// SendFragments sends one message in so many frames.
	SendFragments(fragments [][]byte) error
	// Ping calls done when the Pong has come. Somebody must receive meanwhile.
	Ping(payload string, done func()) error
	Close(code int, reason string) error
	// Drop ends TCP. By then a Close has been answered, except in libraries that answer it here.
	Drop()
	Subprotocol() string
	// Ended gives the code and reason in an error of Receive, if there was a Close.
	Ended(err error) (code int, reason string, ok bool)
}

// Library opens connections. It may do more if the URL asks for more.
type Library interface {
	Module() string
	Accept(w http.ResponseWriter, r *http.Request, tcp net.Conn, serve func(Connection))
	Connect(where *url.URL, subprotocols []string, tcp net.Conn) (Connection, error)
}

// A count is of the bytes that go in one direction.
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

func tell(facts map[string]any) {
	line, err := json.Marshal(facts)
	Check(err)
	os.Stdout.Write(append(line, '\n'))
}

// Check ends the program if there is an error.
func Check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// WriteAll writes the fragments of a message, and ends it.
func WriteAll(writer io.WriteCloser, fragments [][]byte) error {
	for _, fragment := range fragments {
		if _, err := writer.Write(fragment); err != nil {
			return err
		}
	}
	return writer.Close()
}

func sleep(query url.Values, name string) {
	if text := query.Get(name); text != "" {
		seconds, err := strconv.ParseFloat(text, 64)
		Check(err)
		time.Sleep(time.Duration(seconds * float64(time.Second)))
	}
}

func messages(query url.Values) [][]byte {
	var found [][]byte
	for _, text := range strings.Split(query.Get("sizes"), ",") {
		size, err := strconv.Atoi(text)
		Check(err)
		data := make([]byte, size)
		rand.Read(data)
		found = append(found, data)
	}
	return found
}

// behave does what the URL asks for until the connection ends, and reports what was seen.
func behave(where *url.URL, connection Connection) {
	query := where.Query()
	received, sent := newCount(), newCount()
	var late any
	var end error

	receive := func() {
		data, err := connection.Receive()
		received.add(data)
		end = err
	}
	send := func(data []byte) error {
		err := connection.Send(data)
		if err == nil {
			sent.add(data)
		}
		return err
	}

	switch where.Path {
	case "/echo":
		for end == nil {
			data, err := connection.Receive()
			received.add(data)
			end = err
			if err == nil {
				send(data)
			}
		}
	case "/receive":
		if query.Has("pause") {
			receive()
			send([]byte("paused"))
			sleep(query, "pause")
		}
		for end == nil {
			receive()
			sleep(query, "delay")
		}
		late = "sent"
		if err := connection.Send([]byte("late")); err != nil {
			late = err.Error()
		}
	case "/send":
		for _, data := range messages(query) {
			Check(send(data))
		}
		connection.Close(1000, "")
	case "/fragments":
		fragments := messages(query)
		for _, data := range fragments {
			sent.add(data)
		}
		Check(connection.SendFragments(fragments))
		connection.Close(1000, "")
	case "/flood":
		stopped := make(chan error)
		go func() {
			data := make([]byte, 65536)
			for {
				if err := send(data); err != nil {
					stopped <- err
					return
				}
			}
		}()
		for end == nil {
			receive()
		}
		select {
		case err := <-stopped:
			late = err.Error()
		case <-time.After(time.Second): // TCP takes everything, and nothing has ended it.
			late = "sent"
		}
	case "/close":
		receive()
		code, err := strconv.Atoi(query.Get("code"))
		Check(err)
		connection.Close(code, query.Get("reason"))
	case "/ping":
		receive()
		connection.Ping(query.Get("payload"), func() { send([]byte("pong")) })
	case "/abort":
		receive()
		connection.Drop()
	}
	for end == nil {
		receive()
	}

	report := map[string]any{
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
	if code, reason, ok := connection.Ended(end); ok {
		report["code"], report["reason"] = code, reason
	}
	connection.Drop()
	tell(report)
}

// serve returns the port.
func serve(library Library, start func(*http.Server, net.Listener) error) int {
	type key struct{}
	server := &http.Server{
		ConnContext: func(ctx context.Context, tcp net.Conn) context.Context {
			return context.WithValue(ctx, key{}, tcp)
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			tcp := r.Context().Value(key{}).(net.Conn)
			library.Accept(w, r, tcp, func(connection Connection) { behave(r.URL, connection) })
		}),
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Check(err)
	go start(server, listener)
	return listener.Addr().(*net.TCPAddr).Port
}

func connect(library Library, text string, roots *x509.CertPool) {
	where, err := url.Parse(text)
	Check(err)
	var tcp net.Conn
	if where.Scheme == "wss" {
		tcp, err = tls.Dial("tcp", where.Host, &tls.Config{RootCAs: roots})
	} else {
		tcp, err = net.Dial("tcp", where.Host)
	}
	Check(err)
	var subprotocols []string
	if names := where.Query().Get("subprotocols"); names != "" {
		subprotocols = strings.Split(names, ",")
	}
	connection, err := library.Connect(where, subprotocols, tcp)
	Check(err)
	behave(where, connection)
}

func version(module string) string {
	build, _ := debug.ReadBuildInfo()
	for _, dependency := range build.Deps {
		if dependency.Path == module {
			return dependency.Version
		}
	}
	return ""
}

// Run serves, and connects to what comes on standard input, until that ends.
func Run(library Library) {
	certificate, authority := os.Args[1], os.Args[2]
	pem, err := os.ReadFile(authority)
	Check(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)

	tell(map[string]any{
		"version": version(library.Module()),
		"port":    serve(library, (*http.Server).Serve),
		"tls_port": serve(library, func(server *http.Server, listener net.Listener) error {
			return server.ServeTLS(listener, certificate, certificate)
		}),
	})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		go connect(library, lines.Text(), roots)
	}
	Check(lines.Err())
}
