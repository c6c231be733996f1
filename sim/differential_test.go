package sim

import (
	"slices"
	"strings"
	"testing"
)

// A seed runs on PostgreSQL and on its model. The same requests arrive at the same times,
// so both must produce the same history, byte for byte, and the same effects. A difference
// means that a statement and the model disagree.
func TestModelAndPostgresAgree(t *testing.T) {
	t.Parallel()
	onServer := onPostgres(t)
	seeds := uint64(12)
	if raced {
		seeds = 3
	}
	missed := []string{servedShared, servedAhead, servedWhole, servedOwn, leftBehind, caughtUp, "for a scope"}
	for seed := max(1, *firstSeed); seeds > 0; seed, seeds = seed+1, seeds-1 {
		p := planOf(seed, options{postgres: true})
		model, modelEffects := playWithEffects(t, p, func(w *world) (database, error) {
			w.rules.memory.noWait = true
			return inMemory(w)
		})
		server, serverEffects := playWithEffects(t, p, onServer)
		missed = slices.DeleteFunc(missed, func(what string) bool {
			return slices.ContainsFunc(server, func(line string) bool { return strings.Contains(line, what) })
		})
		if at, same := firstDifference(model, server); !same {
			t.Errorf("seed %d: %s\nthe model says\n%s\nPostgreSQL says\n%s", seed, p.String(), at.excerpt(model), at.excerpt(server))
		} else if at, same := firstDifference(modelEffects, serverEffects); !same {
			t.Errorf("seed %d: effect %d differs: %s in the model, %s on PostgreSQL", seed, at, modelEffects[at:at+1], serverEffects[at:at+1])
		}
	}
	if len(missed) > 0 && !raced && *firstSeed == 0 {
		t.Errorf("in none of the seeds a projection was served %q", missed)
	}
}

// playWithEffects returns the trace of a plan, by lines, and what transactions have
// written, in the order of their commits.
func playWithEffects(t *testing.T, p plan, open opener) (lines, written []string) {
	t.Helper()
	o, err := play(p, rules{}, func(w *world) (database, error) {
		db, err := open(w)
		if err != nil {
			return nil, err
		}
		return &closing{db, func() error {
			var effects []effect
			var err error
			switch db := db.(type) {
			case *postgres:
				effects, err = db.effects()
			case *memoryDatabase:
				effects = db.effects()
			}
			for _, e := range effects {
				written = append(written, positions([]event{{position: e.position}})+" of "+e.projection)
			}
			return err
		}}, nil
	}, true)
	if err != nil {
		t.Fatal(err)
	}
	if v := o.violation; v != nil {
		t.Errorf("seed %d breaks %s: %s", p.seed, v.promise, v.what)
	}
	var text strings.Builder
	trace(&text, o.history)
	return strings.Split(text.String(), "\n"), written
}

// closing calls a function before a database is closed.
type closing struct {
	database
	before func() error
}

func (c *closing) close() error {
	if err := c.before(); err != nil {
		return err
	}
	return c.database.close()
}

// A line is the number of a line.
type line int

func firstDifference(a, b []string) (at line, same bool) {
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i] != b[i] {
			return line(i), false
		}
	}
	return 0, true
}

// excerpt returns the line with a few before it.
func (at line) excerpt(lines []string) string {
	return strings.Join(lines[max(0, int(at)-6):min(int(at)+3, len(lines))], "\n")
}
