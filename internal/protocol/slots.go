package protocol

import "math/bits"

// A SlotSet is a set of slots.
type SlotSet [(Slots + 63) / 64]uint64

// SlotsOf returns the slots of a partition.
func SlotsOf(partition, total int) (s SlotSet) {
	for slot := partition; slot < Slots; slot += total {
		s[slot/64] |= 1 << (slot % 64)
	}
	return s
}

// Add adds the slots of another set.
func (s *SlotSet) Add(o *SlotSet) {
	for i, word := range o {
		s[i] |= word
	}
}

// Has reports whether a slot is in the set.
func (s *SlotSet) Has(slot int) bool { return s[slot/64]&(1<<(slot%64)) != 0 }

// Covers reports whether all slots of another set are in this one.
func (s *SlotSet) Covers(o *SlotSet) bool {
	for i, word := range o {
		if word&^s[i] != 0 {
			return false
		}
	}
	return true
}

// Len returns how many slots are in the set.
func (s *SlotSet) Len() (n int) {
	for _, word := range s {
		n += bits.OnesCount64(word)
	}
	return n
}

// spanMax is how many keys are read at once at most.
const spanMax = 10_000

// Span returns how many keys to read to find about limit that are in the set.
func (s *SlotSet) Span(limit int) int {
	return min(spanMax, max(limit, limit*Slots/max(1, s.Len())))
}

// Own returns the positions of the events that are in the set: at most limit of
// them, and those that share the last one's position. through is the position up to which the
// set has no other events, if keys are all events up to passed.
func (s *SlotSet) Own(keys []Key, limit int, passed int64) (own []int64, through int64) {
	for _, k := range keys {
		if !s.Has(k.Slot) {
			continue
		}
		if n := len(own); n >= limit && (n == 0 || own[n-1] != k.Position) {
			return own, k.Position - 1
		}
		own = append(own, k.Position)
	}
	return own, passed
}
