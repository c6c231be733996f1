package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/wire"
)

// A tape records the messages between workers and the database. It reads PostgreSQL's protocol
// on a wire: so it sees what a driver really sends, and does not change the driver's behaviour.
type tape struct {
	mu    sync.Mutex
	conns map[string]int // opened connections, by site
	trips []trip
	heard []hint
	notes []note
}

// A trip is a request of a worker and the answer: one round trip.
type trip struct {
	site              string
	conn              int    // number of the connection at its site
	how               string // "prepare", "execute", or "" for both in one
	text              string // the statements
	sent, arrived     time.Time
	answered, got     time.Time // when the end of the answer left the server, and when it reached the worker
	failed            bool
	prepared, started bool
}

// A hint is a notification that a worker receives.
type hint struct {
	site             string
	channel, payload string
	sent, got        time.Time
}

// A note is another thing that happened.
type note struct {
	site, text string
	at         time.Time
}

// watch returns the function that a site's wire calls for each connection.
func (t *tape) watch(site string) func() wire.Watch {
	if t == nil {
		return nil
	}
	return func() wire.Watch {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.conns == nil {
			t.conns = map[string]int{}
		}
		t.conns[site]++
		return &tap{tape: t, site: site, conn: t.conns[site], up: splitter{untyped: true}, statements: map[string]string{}}
	}
}

// note records something that happened now.
func (t *tape) note(site, format string, args ...any) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.notes = append(t.notes, note{site, fmt.Sprintf(format, args...), time.Now()})
}

// take returns the records since the last call.
func (t *tape) take() (trips []trip, heard []hint, notes []note) {
	t.mu.Lock()
	defer t.mu.Unlock()
	trips, heard, notes = t.trips, t.heard, t.notes
	t.trips, t.heard, t.notes = nil, nil, nil
	return trips, heard, notes
}

// A tap records one connection.
type tap struct {
	tape *tape
	site string
	conn int

	mu         sync.Mutex
	up, down   splitter
	statements map[string]string // prepared statements, by name
	open       *trip             // the trip that is under way
}

// Up implements wire.Watch.
func (t *tap) Up(data []byte, in, out time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.up.split(data, func(kind byte, body []byte) {
		if kind == 'X' { // the worker closes the connection
			return
		}
		if t.open != nil && t.open.started { // a part of the answer made the worker send more
			t.end()
		}
		if t.open == nil {
			t.open = &trip{site: t.site, conn: t.conn, sent: in, arrived: out}
		}
		t.says(kind, body)
	})
}

const (
	sslRequest    = 80877103
	cancelRequest = 80877102
)

// says adds the content of a message to the trip.
func (t *tap) says(kind byte, body []byte) {
	switch kind {
	case 0:
		switch code := binary.BigEndian.Uint32(body); code {
		case sslRequest:
			t.up.untyped, t.down.raw = true, true
			t.open.add("(ask for TLS)")
		case cancelRequest:
			t.open.add("(cancel a statement)")
		default:
			t.open.add("(connect)")
		}
	case 'p':
		t.open.add("(password)")
	case 'Q':
		t.open.add(cString(&body))
	case 'P':
		name, text := cString(&body), cString(&body)
		t.statements[name] = text
		t.open.prepared, t.open.how = true, "prepare"
		t.open.add(text)
	case 'B':
		_, name := cString(&body), cString(&body)
		if t.open.prepared {
			t.open.how = ""
			return
		}
		t.open.how = "execute"
		t.open.add(t.statements[name])
	}
}

func (t *trip) add(text string) {
	if t.text != "" {
		t.text += "; "
	}
	t.text += strings.Join(strings.Fields(text), " ")
}

// Down implements wire.Watch.
func (t *tap) Down(data []byte, in, out time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.down.split(data, func(kind byte, body []byte) {
		if kind == 'A' {
			if len(body) > 4 {
				body = body[4:] // the pid of the sender
			}
			channel, payload := cString(&body), cString(&body)
			t.tape.mu.Lock()
			t.tape.heard = append(t.tape.heard, hint{t.site, channel, payload, in, out})
			t.tape.mu.Unlock()
			return
		}
		if t.open == nil {
			return
		}
		t.open.started, t.open.answered, t.open.got = true, in, out
		t.open.failed = t.open.failed || kind == 'E'
		if kind == 'Z' {
			t.end()
		}
	})
}

// end records the trip.
func (t *tap) end() {
	t.tape.mu.Lock()
	defer t.tape.mu.Unlock()
	t.tape.trips = append(t.tape.trips, *t.open)
	t.open = nil
}

// A splitter splits one direction of a connection into messages.
type splitter struct {
	untyped bool // the next message has no type: the first one of a client
	raw     bool // the next byte is not a message: the answer to the request for TLS
	rest    []byte
}

// split calls each for every message that data completes. The type of a message without one is
// 0.
func (s *splitter) split(data []byte, each func(kind byte, body []byte)) {
	s.rest = append(s.rest, data...)
	for {
		if s.raw && len(s.rest) > 0 {
			each('Z', nil)
			s.rest, s.raw = s.rest[1:], false
		}
		kind, header := byte(0), 0
		if !s.untyped {
			header = 1
		}
		if len(s.rest) < header+4 {
			return
		}
		if header == 1 {
			kind = s.rest[0]
		}
		end := header + int(binary.BigEndian.Uint32(s.rest[header:]))
		if len(s.rest) < end {
			return
		}
		s.untyped = false
		body := s.rest[header+4 : end]
		s.rest = s.rest[end:]
		each(kind, body)
	}
}

// cString removes a zero-terminated string from a message, and returns it.
func cString(body *[]byte) string {
	text, rest, _ := bytes.Cut(*body, []byte{0})
	*body = rest
	return string(text)
}
