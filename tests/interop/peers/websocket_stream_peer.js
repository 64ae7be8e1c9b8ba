// This peer is websocket-stream, which brings an old ws of its own.
'use strict'
const websocketStream = require('websocket-stream')
const { authority, behave, choose, run } = require('./behaviour.js')

function serve (server) {
  websocketStream.createServer({ server, handleProtocols: choose }, (stream, request) => {
    behave(request.url, stream.socket, stream)
  })
}

function connect (url, subprotocols) {
  const stream = websocketStream(url, subprotocols, { ca: authority })
  stream.once('connect', () => behave(url, stream.socket, stream))
}

run(require('websocket-stream/package.json').version, serve, connect)
