package sim

import "slices"

// A lock is the lock of one row: one transaction holds it, or several share it. Others wait
// in a queue.
type lock struct {
	owner   *transaction
	sharers []*transaction
	line    []*waiter
}

// A waiter is a transaction that waits for a lock. then goes on with it.
type waiter struct {
	t     *transaction
	lock  *lock
	share bool
	then  func()
}

// try takes the lock if it is free. A transaction that shares a lock never wants it alone.
func (t *transaction) try(l *lock, share bool) bool {
	return t.has(l) || len(l.line) == 0 && t.take(l, share)
}

func (t *transaction) has(l *lock) bool { return l.owner == t || slices.Contains(l.sharers, t) }

func (t *transaction) take(l *lock, share bool) bool {
	switch {
	case l.owner != nil || !share && len(l.sharers) > 0:
		return false
	case share:
		l.sharers = append(l.sharers, t)
	default:
		l.owner = t
	}
	t.locks = append(t.locks, l)
	return true
}

// acquire takes a lock, and goes on when it has it.
func (t *transaction) acquire(l *lock, share bool, then func()) {
	if t.try(l, share) {
		then()
	} else {
		t.await(l, share, then)
	}
}

// acquireAll takes the locks of rows, one after another.
//
// A statement finds its rows in a snapshot and locks one after the other. For each row that
// it had to wait for, it checks whether the newest version is still one of its rows. So
// callers list the rows first and check them afterwards.
func acquireAll[T any](t *transaction, rows []*row[T], share bool, then func()) {
	for i, r := range rows {
		if !t.try(&r.lock, share) {
			t.await(&r.lock, share, func() { acquireAll(t, rows[i+1:], share, then) })
			return
		}
	}
	then()
}

// await waits for a lock, as long as the transaction may.
func (t *transaction) await(l *lock, share bool, then func()) {
	switch {
	case t.m.rules.noWait:
		t.refused(errNotAvailable)
		return
	case l.blockedBy(t):
		t.refused(errDeadlock)
		return
	}
	t.wait = &waiter{t, l, share, then}
	l.line = append(l.line, t.wait)
	t.stop()
	if t.lockMax > 0 {
		t.stop = t.m.clock.after(t.lockMax, func() { t.refused(errNotAvailable) })
	}
}

// blockedBy reports whether a holder of the lock waits for o, directly or through others.
func (l *lock) blockedBy(o *transaction) bool {
	waits := func(t *transaction) bool { return t == o || t.wait != nil && t.wait.lock.blockedBy(o) }
	return l.owner != nil && waits(l.owner) || slices.ContainsFunc(l.sharers, waits)
}

// leave leaves the queue in which the transaction waits, if it does.
func (t *transaction) leave() {
	w := t.wait
	if w == nil {
		return
	}
	t.wait = nil
	w.lock.line = slices.DeleteFunc(w.lock.line, func(o *waiter) bool { return o == w })
	w.lock.pass()
}

// yield gives back one lock before the transaction ends.
func (t *transaction) yield(l *lock) {
	t.locks = slices.DeleteFunc(t.locks, func(o *lock) bool { return o == l })
	l.release(t)
}

func (l *lock) release(t *transaction) {
	if l.owner == t {
		l.owner = nil
	}
	l.sharers = slices.DeleteFunc(l.sharers, func(o *transaction) bool { return o == t })
	l.pass()
}

// pass gives the lock to the first in the queue. They go on a moment later, when the call
// that has ended the wait is finished.
func (l *lock) pass() {
	for len(l.line) > 0 {
		w := l.line[0]
		if !w.t.take(l, w.share) {
			return
		}
		l.line = l.line[1:]
		w.t.wait = nil
		w.t.stop()
		w.t.stop = w.t.m.clock.after(0, w.then)
	}
}

// A row of a table has its committed version, and that of the transaction which has written
// it and holds its lock. nil is no row.
type row[T any] struct {
	lock
	committed, written *T
	by                 *transaction
}

// as returns the row as a transaction sees it.
func (r *row[T]) as(t *transaction) *T {
	if r.by == t && t != nil {
		return r.written
	}
	return r.committed
}

// put writes a version of a row that the transaction has locked.
func (r *row[T]) put(t *transaction, v *T) {
	if r.by != t {
		if r.owner != t {
			panic("sim: write to a row without its lock")
		}
		r.by = t
		t.rows = append(t.rows, r)
	}
	r.written = v
}

func (r *row[T]) settle(commit bool) {
	if commit {
		r.committed = r.written
	}
	r.written, r.by = nil, nil
}
