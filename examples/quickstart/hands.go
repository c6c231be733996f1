package main

import (
	"context"
	"os"
	"time"
)

// The user's part of the drama. It is bounded, so that the demo ends in time whatever keys
// are pressed: at least one worker always runs, there are only so many actions, and after a
// while there are none. Acts that did not fit in by then are left out.

const (
	actionsMax = 24
	// handsTime is how long keys are taken, beside the time that appending takes.
	handsTime = 18 * time.Second
	// extraMax is how many more workers may run than the demo itself starts.
	extraMax = 3
)

// hands are what the user has done. The drama's lock guards them.
type hands struct {
	until   time.Time // after which no key is taken
	actions int
	free    bool // in a hold, time and actions don't count
	told    bool // that no action is left
	off     bool
	quit    bool
	gone    chan struct{} // closed with quit
}

func newHands(now time.Time, appending time.Duration) hands {
	return hands{until: now.Add(appending + handsTime), gone: make(chan struct{})}
}

// spent reports whether no action is left.
func (h *hands) spent(now time.Time) bool {
	return !h.free && (now.After(h.until) || h.actions >= actionsMax)
}

// obey carries out the keys, until ctx ends.
func (d *drama) obey(ctx context.Context, keys <-chan byte) error {
	for {
		select {
		case key := <-keys:
			if err := d.press(ctx, key); err != nil && ctx.Err() == nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// press carries out a key.
func (d *drama) press(ctx context.Context, key byte) (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := &d.hands
	switch {
	case h.off || h.quit:
		return nil
	case key == keyQuit:
		d.announce("", "you finish now: no more events, and all that there are get handled")
		h.quit = true
		close(h.gone)
		d.writers.stop()
		return nil
	case h.spent(time.Now()):
		if !h.told {
			d.say("", "no more changes by hand: the demo comes to its end (q finishes now)")
		}
		h.told = true
		return nil
	}
	done := true
	switch key {
	case keyKill:
		if done = d.spare("kill"); done {
			p := d.cast[0]
			d.announce(p.name, "is killed by you (SIGKILL)")
			err = d.part(p, os.Kill, killed)
		}
	case keyFreeze:
		if f := d.frozenByUser(); f != nil {
			err = d.wakeLocked(ctx, f, "is woken by you (SIGCONT)")
		} else if done = d.spare("freeze"); done {
			_, err = d.stopLocked(ctx, d.cast[0], "is frozen by you (SIGSTOP); press f again to wake it", true)
		}
	case keyAdd:
		if most := d.options.workers + extraMax; len(d.cast)+len(d.frozen) >= most {
			d.say("", "%d workers are enough; kill one first (k)", most)
			done = false
		} else {
			_, err = d.addLocked("is added by you (process %d)")
		}
	}
	if done {
		h.actions++
	}
	return err
}

// spare reports whether one worker can go and another remains, and says so if not.
func (d *drama) spare(what string) bool {
	if len(d.cast) < 2 {
		d.say("", "can't %s the only worker; add one first (+)", what)
		return false
	}
	return true
}

func (d *drama) frozenByUser() *freeze {
	for _, f := range d.frozen {
		if f.byUser {
			return f
		}
	}
	return nil
}

// over reports whether no further act is played: the user has finished the drama, or has
// used up the time for it.
func (d *drama) over() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hands.quit || d.hands.actions > 0 && time.Now().After(d.hands.until)
}

// changeMax is how long a change may take: the user may add to it.
func (d *drama) changeMax() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return changeMax + max(time.Until(d.hands.until), 0)
}

// quitted returns a channel that is closed when the user finishes. From now on, time and
// actions don't count.
func (d *drama) quitted() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hands.free = true
	return d.hands.gone
}

// handsOff ends the user's part.
func (d *drama) handsOff() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hands.off = true
}
