package orchestrator

import (
	"bytes"
	"testing"
)

type named []byte

type nested struct{ Body named }

type ownEvent struct {
	Position int64
	Payload  []byte
	Nested   nested
	Tags     []string
	Empty    []byte
	Nil      []byte
}

// Whatever a handler does to the bytes of an event, the next call sees it as it was
// read: written into, appended to, of any size.
func TestEventsAreHandedOutCopied(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 100, chunkBytes / 4, chunkBytes/4 + 1, 3 * chunkBytes} {
		body := bytes.Repeat([]byte("x"), size)
		shared := ownEvent{Payload: body, Nested: nested{Body: bytes.Clone(body)}, Empty: []byte{}}
		h := newHandout[ownEvent]()
		one := h.event(shared)
		for i := range one.Payload {
			one.Payload[i], one.Nested.Body[i] = '!', '!'
		}
		one.Payload = append(one.Payload, '!')
		one.Nested.Body = append(one.Nested.Body, '!')
		two := h.event(shared)
		if !bytes.Equal(two.Payload, bytes.Repeat([]byte("x"), size)) || !bytes.Equal(two.Nested.Body, two.Payload) {
			t.Errorf("%d bytes: the next call sees %q", size, two.Payload[:1])
		}
		if two.Empty == nil || two.Nil != nil {
			t.Error("NULL and the empty text are not told apart any more")
		}
		if one.Payload[0] != '!' || len(one.Payload) != size+1 {
			t.Error("the first copy was written over")
		}
	}
}

// An event of another kind is handed out as it is.
func TestEventsWithoutBytesAreHandedOutAsTheyAre(t *testing.T) {
	t.Parallel()
	e := &ownEvent{Payload: []byte("x")}
	h := newHandout[*ownEvent]()
	if h.event(e) != e {
		t.Error("another pointer")
	}
	n := newHandout[int]()
	if n.event(7) != 7 {
		t.Error("another number")
	}
}

func BenchmarkHandout(b *testing.B) {
	e := Event{Payload: make([]byte, 1000), Metadata: make([]byte, 20)}
	h := newHandout[Event]()
	b.ReportAllocs()
	for b.Loop() {
		e := h.event(e)
		_ = e
	}
}

// Bytes are copied wherever they are in an event itself: it may be nothing else, or an
// array of them.
func TestEventsOfBytesAreHandedOutCopied(t *testing.T) {
	t.Parallel()
	bytesOnly := newHandout[named]()
	shared := named("xyz")
	bytesOnly.event(shared)[0] = '!'
	if string(shared) != "xyz" {
		t.Errorf("the event is %s now", shared)
	}
	arrays := newHandout[[2]nested]()
	pair := [2]nested{{named("a")}, {named("b")}}
	one := arrays.event(pair)
	one[0].Body[0], one[1].Body[0] = '!', '!'
	if string(pair[0].Body)+string(pair[1].Body) != "ab" {
		t.Errorf("the events are %s now", pair)
	}
}
