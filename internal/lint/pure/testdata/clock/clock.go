package clock

import (
	. "time"
	wall "time"
)

func read(t wall.Time) {
	_ = wall.Now()               // want: time.Now: the core gets the time as an argument and never waits
	_ = wall.Since(t)            // want: time.Since: the core gets the time as an argument and never waits
	_ = wall.Until(t)            // want: time.Until: the core gets the time as an argument and never waits
	now := wall.Now              // want: time.Now: the core gets the time as an argument and never waits
	_ = now().In(Local)          // want: time.Local: the core gets the time as an argument and never waits
	_ = Month(1) + Now().Month() // want: time.Now: the core gets the time as an argument and never waits
}

func wait(f func()) {
	wall.Sleep(1)                // want: time.Sleep: the core gets the time as an argument and never waits
	_ = wall.After(1)            // want: time.After: the core gets the time as an argument and never waits
	_ = wall.AfterFunc(1, f)     // want: time.AfterFunc: the core gets the time as an argument and never waits
	_ = wall.Tick(1)             // want: time.Tick: the core gets the time as an argument and never waits
	_ = wall.NewTimer(1)         // want: time.NewTimer: the core gets the time as an argument and never waits
	_ = wall.NewTicker(1)        // want: time.NewTicker: the core gets the time as an argument and never waits
	var _ *wall.Timer            // want: time.Timer: the core gets the time as an argument and never waits
	_, _ = wall.LoadLocation("") // want: time.LoadLocation: the core gets the time as an argument and never waits
}
