// Package wire is a network for tests and benchmarks: it passes connections on to a
// database, takes a while for it, and can fall silent.
package wire

import (
	"net"
	"net/url"
	"sync"
	"time"
)

// A Wire leads to a database.
type Wire struct {
	URL string // of the database, through the wire

	delay    time.Duration
	listener net.Listener
	mu       sync.Mutex
	open     []net.Conn
	silent   chan struct{}
}

// To returns a wire to the database at to. A packet takes delay each way.
func To(to string, delay time.Duration) (*Wire, error) {
	u, err := url.Parse(to)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	host := u.Host
	u.Host = listener.Addr().String()
	w := &Wire{URL: u.String(), delay: delay, listener: listener, silent: make(chan struct{})}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // closed
			}
			server, err := net.Dial("tcp", host)
			if err != nil {
				_ = client.Close()
				continue
			}
			w.mu.Lock()
			w.open = append(w.open, client, server)
			silent := w.silent
			w.mu.Unlock()
			go w.pass(server, client, silent)
			go w.pass(client, server, silent)
		}
	}()
	return w, nil
}

// Silence has all connections that are open pass nothing any more. They stay open, and
// new ones work.
func (w *Wire) Silence() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.silent)
	w.silent = make(chan struct{})
}

// Close ends all connections.
func (w *Wire) Close() {
	_ = w.listener.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.open {
		_ = c.Close()
	}
}

type packet struct {
	data []byte
	due  time.Time
}

// pass copies until one side ends, or for as long as the connection is not silent.
func (w *Wire) pass(to, from net.Conn, silent <-chan struct{}) {
	packets := make(chan packet, 4096)
	go func() {
		for p := range packets {
			time.Sleep(time.Until(p.due))
			select {
			case <-silent:
				continue
			default:
			}
			if _, err := to.Write(p.data); err != nil {
				_ = from.Close()
			}
		}
		select {
		case <-silent: // the other end hears nothing
		default:
			_ = to.Close()
		}
	}()
	defer close(packets)
	for {
		buffer := make([]byte, 1<<14)
		n, err := from.Read(buffer)
		if n > 0 {
			packets <- packet{buffer[:n], time.Now().Add(w.delay)}
		}
		if err != nil {
			return
		}
	}
}
