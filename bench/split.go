package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// split measures workers that share a backlog and each read for themselves, as processes do.
// Each worker has its own part of the backlog. The question is what it costs to find that part:
// whole reads all events and skips those of others, own reads what Table reads. It shows in the
// CPU time that all workers and the server use, more than in the time, which depends on the
// machine's cores.
func split(ctx context.Context, b *bench) ([]row, error) {
	const workers = 4
	d, err := b.full(ctx)
	if err != nil {
		return nil, err
	}
	repetitions := 3
	if b.quick {
		repetitions = 2
	}
	var rates, cpus [2][]float64
	for range repetitions {
		for own := range 2 {
			rate, cpu, err := splitTurn(ctx, b, d, workers, own == 1)
			if err != nil {
				return nil, err
			}
			rates[own], cpus[own] = append(rates[own], rate), append(cpus[own], cpu)
		}
	}
	whole := newRow("split/whole", eventsPerSecond, rates[0])
	rows := []row{whole, newRow("split/own", eventsPerSecond, rates[1]).to(whole)}
	if slices.Min(cpus[0]) > 0 && slices.Min(cpus[1]) > 0 {
		whole := newRow("split/whole-cpu", "s per million", cpus[0])
		rows = append(rows, whole, newRow("split/own-cpu", "s per million", cpus[1]).to(whole))
	}
	return rows, nil
}

// splitTurn returns the rate of all workers together, and the seconds of CPU for a million
// events, or 0 if unknown.
func splitTurn(ctx context.Context, b *bench, d *database, workers int, own bool) (speed, cpu float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, turnMax)
	defer cancel()
	application, set, projection := b.fresh("split"), b.fresh("set"), b.fresh("p")
	l := newLedger(d.events, d.events, readMax)
	before, known := cpuOf(os.Getpid(), "")
	var members []*member
	var pools []*sql.DB
	defer func() {
		for _, m := range members {
			err = errors.Join(err, m.stop())
		}
		for _, pool := range pools {
			_ = pool.Close()
		}
	}()
	for range workers {
		pool, err := d.pool(application)
		if err != nil {
			return 0, 0, err
		}
		pools = append(pools, pool)
		cfg, err := config(pool, set)
		if err != nil {
			return 0, 0, err
		}
		cfg.BatchSize, cfg.HeartbeatInterval = pageMax, time.Second // there are no notifications
		cfg.Retry = orchestrator.Retry{Min: 10 * time.Millisecond, Max: 10 * time.Millisecond}
		if !own {
			cfg.EventStore = wholeStore{cfg.EventStore}
		}
		m, err := start(cfg, gathered{checking{name: projection, ledger: l}, workers})
		if err != nil {
			return 0, 0, err
		}
		members = append(members, m)
	}
	if err := l.wait(ctx, members[0].done); err != nil {
		return 0, 0, err
	}
	used, _ := cpuOf(os.Getpid(), "")
	if served, here, err := d.cpuOf(ctx, application); err != nil {
		return 0, 0, err
	} else if known && here {
		cpu = (used - before + served).Seconds() * 1e6 / float64(d.events)
	}
	return rate([]*ledger{l}), cpu, nil
}

// A wholeStore hides the methods that Table has beside those of EventStore.
type wholeStore struct {
	orchestrator.EventStore[orchestrator.Event]
}

// gathered is checking that does not start before all workers are there.
type gathered struct {
	checking
	workers int
}

func (p gathered) Handle(ctx context.Context, e orchestrator.Event) error {
	if a, _ := orchestrator.DeliveryFrom(ctx); a.TotalPartitions < p.workers {
		return errors.New("others are still to come")
	}
	return p.checking.Handle(ctx, e)
}

// cpuOf returns the CPU time that the database's sessions of an application have used so far.
// here is false if they are not on this machine.
func (d *database) cpuOf(ctx context.Context, application string) (sum time.Duration, here bool, err error) {
	rows, err := d.db.QueryContext(ctx, `SELECT pid FROM pg_stat_activity WHERE application_name = $1`, application)
	if err != nil {
		return 0, false, err
	}
	defer rows.Close()
	here = true
	for rows.Next() {
		var pid int
		if err := rows.Scan(&pid); err != nil {
			return 0, false, err
		}
		used, known := cpuOf(pid, "postgres")
		sum, here = sum+used, here && known
	}
	return sum, here, rows.Err()
}

// cpuOf returns the CPU time that a process has used so far, to a hundredth of a second. If
// program is not "", the process must run that program. It needs /proc.
func cpuOf(pid int, program string) (used time.Duration, known bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	name, rest, ok := strings.Cut(string(text), ") ")
	if err != nil || !ok || !strings.HasSuffix(name, "("+program) && program != "" {
		return 0, false
	}
	fields := strings.Fields(rest)
	for _, ticks := range fields[11:13] { // user mode and kernel mode
		n, err := strconv.Atoi(ticks)
		if err != nil {
			return 0, false
		}
		used += time.Duration(n) * 10 * time.Millisecond
	}
	return used, true
}
