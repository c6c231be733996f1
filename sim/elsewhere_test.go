//go:build !race

package sim

import "testing"

// A lane reads its checkpoint until it knows what has become of a commit, and a commit that
// can still happen has the row locked. So a lane never finds the row where neither its
// latest commit nor the one before has left it, however late requests arrive. It does if it
// reads without waiting for the lock.
func TestNeverElsewhere(t *testing.T) {
	count := func(seed uint64, r rules) (n int) {
		o, err := play(planOf(seed, options{}), r, inMemory, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range o.history.facts {
			if f.kind == elsewhere {
				n++
			}
		}
		return n
	}
	hasty := rules{memory: memoryRules{hastyFind: true}}
	for seed := uint64(1); seed <= mutantSeeds; seed++ {
		if n := count(seed, rules{}); n > 0 {
			t.Errorf("seed %d: %d times", seed, n)
		}
		if count(seed, hasty) > 0 {
			return
		}
	}
	t.Errorf("in %d seeds, not even with a hasty look", mutantSeeds)
}
