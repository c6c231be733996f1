package main

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// message returns a message of PostgreSQL's protocol.
func message(kind byte, body string) string {
	text := string(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4))) + body
	if kind != 0 {
		text = string(kind) + text
	}
	return text
}

const startup = "\x00\x03\x00\x00user\x00u\x00\x00"

// TestTap shows that traffic is recorded as round trips, however the network splits it.
func TestTap(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	type way struct {
		up   bool
		text string
	}
	ways := []way{
		{true, message(0, "\x04\xd2\x16\x2f")}, {false, "N"},
		{true, message(0, startup)}, {false, message('R', "\x00\x00\x00\x05salt")},
		{true, message('p', "secret\x00")}, {false, message('R', "\x00\x00\x00\x00") + message('S', "a\x00b\x00") + message('Z', "I")},
		{true, message('Q', "SELECT\n  1\x00")}, {false, message('T', "") + message('A', "\x00\x00\x00\x01events\x00now\x00") + message('Z', "I")},
		{true, message('P', "\x00SELECT $1\x00\x00\x00") + message('D', "S\x00") + message('S', "")}, {false, message('1', "") + message('Z', "I")},
		{true, message('B', "\x00\x00\x00\x00") + message('E', "\x00") + message('S', "")}, {false, message('E', "bad") + message('Z', "I")},
		{true, message('P', "\x00SELECT 2\x00") + message('B', "\x00\x00") + message('S', "")}, {false, message('Z', "I")},
		{true, message('X', "")},
	}
	type told struct {
		How, Text string
		Failed    bool
		Took      time.Duration
	}
	want := []told{
		{"", "(ask for TLS)", false, 3}, {"", "(connect)", false, 3}, {"", "(password)", false, 3}, {"", "SELECT 1", false, 3},
		{"prepare", "SELECT $1", false, 3}, {"execute", "SELECT $1", true, 3}, {"", "SELECT 2", false, 3},
	}
	for _, size := range []int{1, 3, 1000} {
		tape := &tape{}
		w := tape.watch("w1")()
		for i, way := range ways {
			in := at.Add(2 * time.Duration(i))
			for text := way.text; text != ""; {
				n := min(size, len(text))
				if way.up {
					w.Up([]byte(text[:n]), in, in.Add(1))
				} else {
					w.Down([]byte(text[:n]), in, in.Add(1))
				}
				text = text[n:]
			}
		}
		trips, heard, _ := tape.take()
		var got []told
		for _, trip := range trips {
			got = append(got, told{trip.how, trip.text, trip.failed, trip.got.Sub(trip.sent)})
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("in pieces of %d (-want +got):\n%s", size, diff)
		}
		if len(heard) != 1 || heard[0].channel != "events" || heard[0].payload != "now" {
			t.Errorf("in pieces of %d: heard %+v", size, heard)
		}
	}
}

// TestPath shows that the chain goes from the last worker's first event, through the
// notification that it received, to the commit that sent the notification, and leaves out what
// happened meanwhile.
func TestPath(t *testing.T) {
	at := func(ms int) time.Time {
		return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(ms) * time.Millisecond)
	}
	ask := func(site, text string, sent int) trip {
		return trip{site: site, text: text, sent: at(sent), arrived: at(sent + 5), answered: at(sent + 5), got: at(sent + 10)}
	}
	c := &trace{
		began: at(0), ended: at(60), floor: 10,
		trips: []trip{ask("w1", "BEGIN", 0), ask("w1", "COMMIT", 10), ask("w2", "SELECT 3", 13), ask("w2", "SELECT 1", 21), ask("w2", "SELECT 2", 31), ask("w3", "UPDATE t", 30)},
		heard: []hint{{"w2", "c", "p", at(15), at(20)}, {"w3", "c", "p", at(15), at(20)}},
		notes: []note{{"w3", "handles an event", at(40)}, {"w2", "handles an event", at(42)}, {"w2", "handles an event", at(70)}},
	}
	var got []string
	for _, l := range c.path() {
		got = append(got, l.site+" "+l.text)
	}
	want := []string{"w1 BEGIN", "w1 COMMIT", `w2 hears c "p"`, "w2 SELECT 1", "w2 SELECT 2", "w2 handles an event"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
