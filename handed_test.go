package orchestrator

import "testing"

// What one projection appends to an event is not in what the next one gets, and handing
// an event over costs nothing.
func TestHanded(t *testing.T) {
	shared := Event{Payload: make([]byte, 1, 10), Metadata: make([]byte, 1, 10)}
	one, other := handed(shared), handed(shared)
	one.Payload, one.Metadata = append(one.Payload, 1), append(one.Metadata, 1)
	if other.Payload, other.Metadata = append(other.Payload, 2), append(other.Metadata, 2); one.Payload[1] != 1 || one.Metadata[1] != 1 {
		t.Error("what is appended is shared")
	}
	var got Event
	if n := testing.AllocsPerRun(100, func() { got = handed(shared) }); n != 0 {
		t.Errorf("%.0f allocations to hand over an event of %d bytes", n, len(got.Payload))
	}
}
