package wire

import (
	"io"
	"net"
	"net/url"
	"testing"
	"time"
)

// echo starts a server that returns every byte, and returns its address.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return "postgres://" + l.Addr().String()
}

func dial(t *testing.T, w *Wire) net.Conn {
	t.Helper()
	u, err := url.Parse(w.URL)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestDelayLine shows that every byte is delayed in each direction, and that bytes before it add
// no delay. A wire that passes one packet per delay would take 30 delays here.
func TestDelayLine(t *testing.T) {
	const delay, packets = 100 * time.Millisecond, 30
	w, err := To(echo(t), delay)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	// The first round trip includes opening the connection, which the wire may accept before
	// Dial has returned.
	began := time.Now()
	c := dial(t, w)
	roundTrip(t, c)
	if took := time.Since(began); took < 4*delay {
		t.Errorf("a new connection and a round trip took %s, want at least %s", took, 4*delay)
	}
	var sent [packets]time.Time
	go func() {
		for i := range sent {
			sent[i] = time.Now()
			_, _ = c.Write([]byte{byte(i)})
			time.Sleep(time.Millisecond)
		}
	}()
	for i := range packets {
		var b [1]byte
		if _, err := io.ReadFull(c, b[:]); err != nil {
			t.Fatal(err)
		}
		took := time.Since(sent[i])
		if int(b[0]) != i {
			t.Fatalf("byte %d came in place of %d", b[0], i)
		}
		if took < 2*delay || took > packets/3*delay {
			t.Errorf("byte %d took %s, want %s and what a busy machine adds", i, took, 2*delay)
		}
	}
}

func roundTrip(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	began := time.Now()
	if _, err := c.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

type seen struct {
	t        *testing.T
	delay    time.Duration
	up, down chan string
}

func (s seen) Up(data []byte, in, out time.Time)   { s.note(s.up, data, in, out) }
func (s seen) Down(data []byte, in, out time.Time) { s.note(s.down, data, in, out) }

func (s seen) note(to chan string, data []byte, in, out time.Time) {
	if out.Sub(in) < s.delay {
		s.t.Errorf("%q went in at %s and came out at %s", data, in, out)
	}
	to <- string(data)
}

// TestWatched shows that a Watch is called before the data leaves the wire.
func TestWatched(t *testing.T) {
	s := seen{t, time.Millisecond, make(chan string, 1), make(chan string, 1)}
	w, err := Watched(echo(t), s.delay, func() Watch { return s })
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	c := dial(t, w)
	for range 3 {
		roundTrip(t, c)
		if up, down := <-s.up, <-s.down; up != "\x00" || down != up {
			t.Errorf("up %q, down %q", up, down)
		}
	}
}
