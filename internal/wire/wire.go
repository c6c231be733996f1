// Package wire simulates a network for tests and benchmarks. It forwards connections to a
// database, with a delay, and can become silent.
package wire

import (
	"net"
	"net/url"
	"sync"
	"time"
)

// A Wire is a network to a database. It is a delay line: each packet takes the same time, no
// matter how many are under way.
type Wire struct {
	URL string // of the database through the wire

	delay    time.Duration
	watch    func() Watch
	listener net.Listener
	mu       sync.Mutex
	open     []net.Conn
	silent   chan struct{}
}

// A Watch receives the data of one connection, with the times at which it enters and leaves the
// wire. It is called just before the data leaves. Up and Down are called concurrently.
type Watch interface {
	Up(data []byte, in, out time.Time)   // to the database
	Down(data []byte, in, out time.Time) // from it
}

// To returns a wire to the database with the URL to. A packet takes delay in each direction,
// including the packets that open a connection.
func To(to string, delay time.Duration) (*Wire, error) { return Watched(to, delay, nil) }

// Watched does what To does, and calls watch for each connection.
func Watched(to string, delay time.Duration, watch func() Watch) (*Wire, error) {
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
	w := &Wire{URL: u.String(), delay: delay, watch: watch, listener: listener, silent: make(chan struct{})}
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
			up, down := w.watching()
			// The kernel has exchanged the two packets that open a connection already.
			opened := time.Now().Add(2 * w.delay)
			go w.pass(server, client, silent, opened, up)
			go w.pass(client, server, silent, opened, down)
		}
	}()
	return w, nil
}

// Silence stops all data on connections that are open now. They stay open. New connections work.
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

// watching returns the functions to call for the two directions of a connection.
func (w *Wire) watching() (up, down func(data []byte, in, out time.Time)) {
	if w.watch == nil {
		ignore := func([]byte, time.Time, time.Time) {}
		return ignore, ignore
	}
	watch := w.watch()
	return watch.Up, watch.Down
}

type packet struct {
	data    []byte
	in, due time.Time
}

// pass copies data until one side ends or the connection becomes silent.
func (w *Wire) pass(to, from net.Conn, silent <-chan struct{}, opened time.Time, tell func(data []byte, in, out time.Time)) {
	packets := make(chan packet, 4096)
	go func() {
		s := newSleeper()
		defer s.close()
		for p := range packets {
			s.sleep(time.Until(p.due))
			select {
			case <-silent:
				continue
			default:
			}
			tell(p.data, p.in, time.Now())
			if _, err := to.Write(p.data); err != nil {
				_ = from.Close()
			}
		}
		select {
		case <-silent: // the other end receives nothing
		default:
			_ = to.Close()
		}
	}()
	defer close(packets)
	for {
		buffer := make([]byte, 1<<14)
		n, err := from.Read(buffer)
		if n > 0 {
			in := time.Now()
			sent := in
			if sent.Before(opened) {
				sent = opened
			}
			packets <- packet{buffer[:n], in, sent.Add(w.delay)}
		}
		if err != nil {
			return
		}
	}
}
