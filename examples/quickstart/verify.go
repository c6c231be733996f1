package main

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// projectionNames are the projections of projections.go.
var projectionNames = []string{"plain", "transactional", "batch"}

// The verification: four questions to the tables events and effects, each about one
// projection, $1. The right answer is 0. The tables are in tables.go. verify_test.go makes
// each answer wrong.
const (
	// Events without an effect.
	lostSQL = `
SELECT count(*) FROM events e WHERE NOT EXISTS (
       SELECT FROM effects f
        WHERE f.projection = $1 AND f.position = e.global_position
          AND f.aggregate_id = e.aggregate_id AND f.aggregate_version = e.aggregate_version)`

	// Events with more than one effect.
	duplicatedSQL = `
SELECT count(*) FROM (
       SELECT FROM effects WHERE projection = $1 GROUP BY position HAVING count(*) > 1) AS d`

	// Events whose first effect was written after that of a later event of the
	// same aggregate. An aggregate's handlers never run at the same time, so
	// the order of seq is the order in which they ran.
	outOfOrderSQL = `
WITH firsts AS (
     SELECT DISTINCT ON (position) seq, aggregate_id, aggregate_version
       FROM effects WHERE projection = $1 ORDER BY position, seq),
compared AS (
     SELECT aggregate_version,
            max(aggregate_version) OVER (PARTITION BY aggregate_id ORDER BY seq
                                         ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reached
       FROM firsts)
SELECT count(*) FROM compared WHERE aggregate_version < reached`

	// Pairs of turns that overlap in time and have hash slots, and so maybe
	// aggregates, in common. A turn is what one worker did with one partition
	// in one generation, from the beginning of its first effect to the end of
	// its last, so it covers every handler in between. Partition p of N and
	// partition q of M have slots in common if p and q leave the same remainder
	// when divided by the greatest common divisor of N and M. What excusedSQL
	// finds is left out.
	overlapsSQL = `
WITH excused AS (` + excusedSQL + `),
turns AS (
     SELECT worker, generation, partition, total, min(began) AS began, max(ended) AS ended
       FROM effects WHERE projection = $1 AND seq NOT IN (SELECT seq FROM excused)
      GROUP BY worker, generation, partition, total)
SELECT count(*)
  FROM turns a
  JOIN turns b ON (a.worker, a.generation, a.partition, a.total) < (b.worker, b.generation, b.partition, b.total)
              AND a.began < b.ended AND b.began < a.ended
              AND a.partition % gcd(a.total, b.total) = b.partition % gcd(a.total, b.total)`

	// The one call of the plain projection that a worker had in hand when it was
	// frozen, if its effect was written after the worker was woken. Nothing can keep
	// a process that was frozen for longer than its lease from ending the statement
	// that it was at. For transactions there is no excuse: they can't have been
	// committed.
	excusedSQL = `
SELECT DISTINCT ON (z.worker, z.woken_at) f.seq
  FROM freezes z
  JOIN effects f ON f.projection = 'plain' AND f.worker = z.worker
                AND f.generation <= z.generation AND f.ended >= z.woken_at
 ORDER BY z.worker, z.woken_at, f.seq`
)

// A finding is what the verification found for one projection.
type finding struct {
	projection                             string
	effects                                int64
	lost, duplicated, outOfOrder, overlaps int64
}

// A verdict is what it found in all.
type verdict struct {
	events, generations int64
	findings            []finding
	excused             int64 // calls that are not counted as overlaps
}

// A querier is a database or a transaction.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// verify asks the four questions about each projection. All handlers must have
// ended.
func verify(ctx context.Context, db querier) (v verdict, err error) {
	ask := func(answer *int64, query string, args ...any) {
		if err == nil {
			err = db.QueryRowContext(ctx, query, args...).Scan(answer)
		}
	}
	ask(&v.events, `SELECT count(*) FROM events`)
	ask(&v.excused, `SELECT count(*) FROM (`+excusedSQL+`) AS e`)
	for _, p := range projectionNames {
		f := finding{projection: p}
		ask(&f.effects, `SELECT count(*) FROM effects WHERE projection = $1`, p)
		ask(&f.lost, lostSQL, p)
		ask(&f.duplicated, duplicatedSQL, p)
		ask(&f.outOfOrder, outOfOrderSQL, p)
		ask(&f.overlaps, overlapsSQL, p)
		v.findings = append(v.findings, f)
	}
	if err != nil {
		return v, fmt.Errorf("verify: %w", err)
	}
	return v, nil
}

// A summary is a verdict in six numbers and one more.
type summary struct {
	Events      int64 `json:"events"`
	Lost        int64 `json:"lost"`
	Duplicated  int64 `json:"duplicated"`
	OutOfOrder  int64 `json:"out_of_order"`
	Overlaps    int64 `json:"overlaps"`
	Generations int64 `json:"generations"`
	// Redelivered is how often the plain projection was given an event again.
	Redelivered int64 `json:"redelivered"`
}

// summary adds up. What the plain projection has twice does not count as duplicated: its
// promise is at least once.
func (v verdict) summary() summary {
	s := summary{Events: v.events, Generations: v.generations}
	for _, f := range v.findings {
		s.Lost += f.lost
		s.OutOfOrder += f.outOfOrder
		s.Overlaps += f.overlaps
		if f.projection == "plain" {
			s.Redelivered += f.effects - (v.events - f.lost)
		} else {
			s.Duplicated += f.duplicated
		}
	}
	return s
}

func (s summary) String() string {
	return fmt.Sprintf("events=%d lost=%d duplicated=%d out_of_order=%d overlaps=%d generations=%d",
		s.Events, s.Lost, s.Duplicated, s.OutOfOrder, s.Overlaps, s.Generations)
}

// err returns what the verification found to be wrong.
func (v verdict) err() error {
	s := v.summary()
	if s.Events > 0 && s.Lost == 0 && s.Duplicated == 0 && s.OutOfOrder == 0 && s.Overlaps == 0 {
		return nil
	}
	return fmt.Errorf("the verification failed: %s", s)
}

// report prints the findings, the summary, and what to do next.
func (v verdict) report(d *display) {
	s := v.summary()
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	say("\nEach projection wrote down what it handled. SQL compared that with the events:\n")
	if s.Redelivered > 0 {
		say(`The plain projection got events again (%d), as it may (at least once): its
worker crashed, froze or was interrupted after it had handled them, and before
the checkpoint was committed. That is at most one batch (100) each time. The
other two write in the transaction that commits the checkpoint. They must have
no event twice.
`, s.Redelivered)
	}
	if v.excused > 0 {
		say(`Not counted as an overlap: the call of the plain projection that a worker had in
hand when it was frozen, and that ended when the worker was woken (%d).
`, v.excused)
	}
	say("%s", d.paint(dim, fmt.Sprintf("%-14s %-13s %8s %6s %7s %13s %9s", "projection", "delivery", "effects", "lost", "again", "out of order", "overlaps")))
	for _, f := range v.findings {
		delivery, again := "exactly once", d.number(7, f.duplicated)
		if f.projection == "plain" {
			delivery, again = "at least once", fmt.Sprintf("%7d", s.Redelivered)
		}
		say("%-14s %-13s %8d %s %s %s %s", f.projection, delivery, f.effects,
			d.number(6, f.lost), again, d.number(13, f.outOfOrder), d.number(9, f.overlaps))
	}
	style := bold + ";" + green
	if v.err() != nil {
		style = bold + ";" + red
	}
	say("\n%s\n", d.paint(style, s.String()))
	say(`What next:
  docs/getting-started.md   a program of your own, in ten minutes
  docs/status-page.md       the page that you could open, in your program
  make sim                  the same code under thousands of simulated failures`)
	fmt.Fprint(d.out, b.String())
}

// number shows a count that should be 0.
func (d *display) number(width int, n int64) string {
	style := green
	if n != 0 {
		style = red
	}
	return d.paint(style, fmt.Sprintf("%*d", width, n))
}
