package main

import (
	"bytes"
	"testing"
)

// TestLedger shows that a ledger detects lost, repeated and reordered events.
func TestLedger(t *testing.T) {
	for _, c := range []struct {
		name     string
		versions []int64
		ok       bool
	}{
		{"all", []int64{1, 2, 3}, true},
		{"repeated", []int64{1, 1}, false},
		{"out of order", []int64{2, 1}, false},
		{"lost", []int64{1, 3}, false},
	} {
		l, ok := newLedger(3), true
		for i, version := range c.versions {
			done, err := l.note("a3", version)
			ok = ok && err == nil
			if err == nil && done != (i == 2) {
				t.Errorf("%s: done %t after %d events", c.name, done, i+1)
			}
		}
		if ok != c.ok {
			t.Errorf("%s: %t", c.name, ok)
		}
	}
}

// TestMeasure runs both contenders over a few events.
func TestMeasure(t *testing.T) {
	r, err := measure(t.Context(), 2*batchSize+1, 1)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := r.report(&out, false); err != nil {
		t.Fatal(err)
	}
	if len(r.Ratio) != 1 || r.Ratio[0] <= 0 || !bytes.Contains(out.Bytes(), []byte("beside/library-100")) {
		t.Errorf("%+v\n%s", r, &out)
	}
}
