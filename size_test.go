package orchestrator_test

import (
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

type node struct {
	Next, Parent *node
	Text         string
}

// A message keeps things to itself, as a protobuf message does.
type message struct {
	Text  string
	state struct{ lazy *[]byte }
	cache map[string]string
}

// What events take in memory is about what is estimated, however they are made.
func TestSizeOfEvents(t *testing.T) {
	t.Parallel()
	const k = 1000
	text := strings.Repeat("x", k)
	cyclic := &node{Text: text}
	cyclic.Next = &node{Parent: cyclic, Text: text, Next: cyclic}
	var list *node
	for range 5000 {
		list = &node{Next: list}
	}
	self := []any{text, nil}
	self[1] = self
	myself := map[string]any{}
	myself["me"] = myself
	many := make([]struct{ Text, Other string }, 50_000)
	for i := range many {
		many[i].Text = text
	}
	lazy := make([]byte, 100*k)
	private := struct {
		at      time.Time
		payload []byte
	}{payload: make([]byte, 50*k)}
	for name, c := range map[string]struct {
		got         int
		least, most int
	}{
		"a string":                       {orchestrator.SizeOf(text), k, 2 * k},
		"bytes":                          {orchestrator.SizeOf(make([]byte, k)), k, 2 * k},
		"strings in a slice":             {orchestrator.SizeOf([]string{text, text, text}), 3 * k, 4 * k},
		"very many":                      {orchestrator.SizeOf(repeated(text, 100_000)), 100_000 * k, 110_000 * k},
		"bytes in a slice":               {orchestrator.SizeOf([][]byte{make([]byte, k), make([]byte, k)}), 2 * k, 3 * k},
		"a map":                          {orchestrator.SizeOf(map[string]string{"a": text, "b": text}), 2 * k, 3 * k},
		"a map of maps":                  {orchestrator.SizeOf(map[string]any{"a": map[string]any{"b": []any{text, text}}}), 2 * k, 3 * k},
		"more structs than it looks at":  {orchestrator.SizeOf(many), 45_000 * k, 60_000 * k},
		"a cycle of pointers":            {orchestrator.SizeOf(cyclic), 2 * k, 3 * k},
		"a cycle by value":               {orchestrator.SizeOf(*cyclic), 2 * k, 4 * k},
		"a slice that holds itself":      {orchestrator.SizeOf(self), k, 2 * k},
		"a map that holds itself":        {orchestrator.SizeOf(myself), 8, k},
		"a long list":                    {orchestrator.SizeOf(list), 4000 * int(unsafe.Sizeof(node{})), 6000 * int(unsafe.Sizeof(node{}))},
		"what a package keeps to itself": {orchestrator.SizeOf(&message{Text: text, state: struct{ lazy *[]byte }{&lazy}, cache: map[string]string{"x": text}}), k, 2 * k},
		"an event's own fields":          {orchestrator.SizeOf(private), 50 * k, 51 * k},
		"nothing":                        {orchestrator.SizeOf[any](nil), 0, 100},
		"channels and functions": {orchestrator.SizeOf(struct {
			C chan int
			F func()
		}{make(chan int), func() {}}), 16, 100},
	} {
		if c.got < c.least || c.got > c.most {
			t.Errorf("%s: %d, want %d to %d", name, c.got, c.least, c.most)
		}
	}
}

func repeated(text string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = text
	}
	return out
}

// Estimating does not read what a package writes whenever it likes.
func TestSizeOfEventsInUse(t *testing.T) {
	t.Parallel()
	m := &message{Text: "x", cache: map[string]string{}}
	var writing sync.WaitGroup
	writing.Go(func() {
		for range 1000 {
			m.cache["x"] += "y"
			m.state.lazy = new([]byte)
		}
	})
	for range 1000 {
		orchestrator.SizeOf(m)
	}
	writing.Wait()
}
