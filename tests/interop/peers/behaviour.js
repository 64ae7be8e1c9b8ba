// What every peer in Node does with a connection. tests/interop/__init__.py has the list.
'use strict'
const crypto = require('crypto')
const fs = require('fs')
const http = require('http')
const https = require('https')
const readline = require('readline')
const { PassThrough } = require('stream')
const { setTimeout: sleep } = require('timers/promises')

const [certificate, authority] = process.argv.slice(2).map((path) => fs.readFileSync(path))
exports.authority = authority

exports.choose = (offered) => ([...offered].includes('bytes') ? 'bytes' : '')

function tell (facts) {
  fs.writeSync(1, JSON.stringify(facts) + '\n')
}

class Digest {
  length = 0
  hash = crypto.createHash('sha256')

  update (data) {
    this.length += data.length
    this.hash.update(data)
  }
}

// Do with a WebSocket and the stream over it what the URL asks for. Report when both have ended.
exports.behave = function (url, ws, stream) {
  const { pathname, searchParams: query } = new URL(url, 'ws://localhost')
  const received = new Digest()
  const sent = new Digest()
  const closed = new Promise((resolve) => {
    ws.once('close', (code, reason) => resolve([code, reason.toString()]))
  })
  const ended = new Promise((resolve) => {
    stream.once('end', resolve)
    // Some streams are closed while there is still something to be read from them.
    const look = () => {
      if (stream.readableLength || stream.isPaused()) setTimeout(look, 10)
      else resolve()
    }
    stream.once('close', look)
  })

  let late = null

  function send (data, done) {
    sent.update(data)
    stream.write(data, done)
  }

  const behaviours = {
    '/echo': () => {
      const through = new PassThrough()
      through.on('data', (data) => sent.update(data))
      stream.pipe(through).pipe(stream)
    },
    '/receive': () => {
      const pause = Number(query.get('pause'))
      const delay = Number(query.get('delay'))
      stream.once('data', () => {
        if (!pause) return
        send(Buffer.from('paused'))
        stream.pause()
        setTimeout(() => stream.resume(), 1000 * pause)
      })
      if (!delay) return
      stream.on('data', () => {
        stream.pause()
        setTimeout(() => stream.resume(), 1000 * delay)
      })
    },
    '/send': async () => {
      for (const size of query.get('sizes').split(',')) {
        await new Promise((resolve) => send(crypto.randomBytes(Number(size)), resolve))
      }
      stream.end()
    },
    '/fragments': () => {
      const fragments = query.get('sizes').split(',').map((size) => crypto.randomBytes(Number(size)))
      fragments.forEach((fragment, index) => {
        sent.update(fragment)
        ws.send(fragment, { binary: true, fin: index === fragments.length - 1 })
      })
      ws.close()
    },
    '/flood': () => {
      if (late) return
      send(crypto.randomBytes(65536), (error) => {
        if (error) late = late || error.code || error.message
        else setImmediate(behaviours['/flood']) // What has come is read first.
      })
    },
    '/close': () => {
      stream.once('data', () => ws.close(Number(query.get('code')), query.get('reason')))
    },
    '/ping': () => {
      ws.once('pong', (payload) => {
        if (payload.toString() === query.get('payload')) send(Buffer.from('pong'))
      })
      stream.once('data', () => ws.ping(query.get('payload')))
    },
    '/abort': () => stream.once('data', () => ws.terminate())
  }
  stream.on('error', (error) => console.error(String(error)))
  stream.on('data', (data) => received.update(data))
  behaviours[pathname]()

  Promise.all([closed, ended]).then(async ([[code, reason]]) => {
    if (pathname === '/receive') {
      late = await new Promise((resolve) => {
        stream.write('late', (error) => resolve(error ? error.code || error.message : 'sent'))
      })
    }
    if (pathname === '/flood' && !late) {
      await sleep(1000)
      late = late || 'sent' // It stands unless the library has raised an error.
    }
    tell({
      id: query.get('id'),
      code,
      reason,
      subprotocol: ws.protocol || null,
      received: received.length,
      received_sha256: received.hash.digest('hex'),
      sent: sent.length,
      sent_sha256: sent.hash.digest('hex'),
      late
    })
  })
}

// Serve, and connect to what comes on standard input, until that ends.
//   serve(server): makes a WebSocket server on an HTTP server
//   connect(url, subprotocols): a client
exports.run = async function (version, serve, connect) {
  const servers = [http.createServer(), https.createServer({ cert: certificate, key: certificate })]
  for (const server of servers) {
    serve(server)
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  }
  const [port, tlsPort] = servers.map((server) => server.address().port)
  tell({ version, port, tls_port: tlsPort })

  const lines = readline.createInterface({ input: process.stdin })
  lines.on('line', (url) => {
    const subprotocols = new URL(url).searchParams.get('subprotocols')
    connect(url, subprotocols ? subprotocols.split(',') : [])
  })
  lines.on('close', () => process.exit(0))
}
