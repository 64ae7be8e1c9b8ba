// The peers in Go; each folder but behaviour is a program. `nox -s interop` builds them outside of the tree.
module peers

go 1.26.0

require (
	github.com/coder/websocket v1.8.15
	github.com/gobwas/ws v1.5.0
	github.com/gorilla/websocket v1.5.3
	golang.org/x/net v0.62.0
)
