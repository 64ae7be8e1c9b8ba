// This peer is ws, with Node streams over it (createWebSocketStream).
'use strict'
const { WebSocket, WebSocketServer, createWebSocketStream } = require('ws')
const { authority, behave, choose, run } = require('./behaviour.js')

function serve (server) {
  new WebSocketServer({ server, handleProtocols: choose }).on('connection', (ws, request) => {
    behave(request.url, ws, createWebSocketStream(ws))
  })
}

function connect (url, subprotocols) {
  const ws = new WebSocket(url, subprotocols, { ca: authority })
  ws.once('open', () => behave(url, ws, createWebSocketStream(ws)))
}

run(require('ws/package.json').version, serve, connect)
