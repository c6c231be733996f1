package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/terminal"
)

// A pager shows the status on a screen, and obeys keys. It writes nothing itself.
type pager struct {
	view
	reading       // the latest that succeeded
	failed  error // why a later one did not
	keys    bool  // there is a keyboard
	top     int   // the first line of the body that is shown
	height  int
}

const (
	alternateScreen = "\x1b[?1049h\x1b[?25l"
	ordinaryScreen  = "\x1b[?25h\x1b[?1049l"
	home            = "\x1b[H"
	toLineEnd       = "\x1b[K"
	toScreenEnd     = "\x1b[J"
)

// page shows the status on the screen until ctx ends or q is pressed. The last frame stays.
func (c *call) page(ctx context.Context, first reading, readings <-chan reading) {
	p := &pager{view: view{watched: true, verbose: c.verbose, by: byWorst}, reading: first}
	keys := make(chan terminal.Key)
	restore := func() {}
	in, ok := c.stdin.(*os.File)
	takeKeys := func() {
		if r, err := terminal.SingleKeys(in); err == nil {
			restore, p.keys = r, true
		}
	}
	if ok && terminal.Is(in) {
		takeKeys()
	}
	defer func() { restore() }()
	if p.keys {
		go terminal.ReadKeys(in, func(key terminal.Key) bool { // it may be reading until the process ends
			select {
			case keys <- key:
				return true
			case <-ctx.Done():
				return false
			}
		})
	}
	suspensions, stopSuspensions := terminal.Suspensions()
	defer stopSuspensions()
	resized, stop := terminal.Resized()
	defer stop()
	colours := terminal.Colours(c.screen)
	fmt.Fprint(c.screen, alternateScreen)
	var last []line
	defer func() {
		fmt.Fprint(c.screen, ordinaryScreen+paint(last, colours))
	}()
	for {
		p.width, p.height = terminal.Size(c.screen)
		frame := p.frame()
		last = frame[:len(frame)-1]                    // without the keys
		io.WriteString(c.screen, draw(frame, colours)) // in one write, to avoid flicker; if the terminal is gone, a signal ends the program
		select {
		case <-ctx.Done():
			return
		case r, ok := <-readings:
			if !ok {
				return
			}
			p.take(r)
		case key := <-keys:
			if !p.press(key) {
				return
			}
		case <-resized:
		case <-suspensions: // Ctrl-Z: the shell gets the terminal as it was
			fmt.Fprint(c.screen, ordinaryScreen)
			restore()
			_ = terminal.Suspend()
			if restore = func() {}; p.keys {
				takeKeys()
			}
			fmt.Fprint(c.screen, alternateScreen)
		}
	}
}

// draw formats a frame for a screen, over the one before.
func draw(frame []line, colours bool) string {
	var b strings.Builder
	b.WriteString(home)
	for i, l := range frame {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(l.paint(colours) + toLineEnd)
	}
	return b.String() + toScreenEnd
}

// take takes a new reading. If it has failed, the one before stays.
func (p *pager) take(r reading) {
	if p.failed = r.err; r.err == nil {
		p.reading = r
	}
}

// press obeys a key. It returns false if the key ends the command.
func (p *pager) press(key terminal.Key) bool {
	switch key {
	case 'q', 'Q':
		return false
	case terminal.Up, 'k':
		p.top--
	case terminal.Down, 'j':
		p.top++
	case terminal.PageUp, 'b' & 0x1f: // Ctrl-B
		p.top -= p.room()
	case terminal.PageDown, ' ', 'f' & 0x1f: // Ctrl-F
		p.top += p.room()
	case terminal.Home, 'g':
		p.top = 0
	case terminal.End, 'G':
		p.top = len(p.body())
	case 'w':
		p.by = byWorst
	case 'n':
		p.by = byName
	case 'b':
		p.by = byBehind
	case 'p':
		p.by = byParked
	case 'v':
		p.verbose = !p.verbose
	}
	p.bound()
	return true
}

// around is how many lines of the screen are around the body: time, below, keys.
const around = 3

// room returns how many lines of the body fit on the screen.
func (p *pager) room() int { return max(p.height-around, 1) }

func (p *pager) body() []line { return p.all(p.sets) }

// bound keeps the last page full.
func (p *pager) bound() { p.top = max(0, min(p.top, len(p.body())-p.room())) }

// frame returns the lines of the screen: the time, the body, what is below it, and the keys.
func (p *pager) frame() []line {
	p.bound()
	body := p.body()
	below := len(body) - p.top - p.room()
	first := line{{p.at.UTC().Format(time.DateTime) + " UTC", bold}}
	if p.by != byWorst {
		first = append(first, span{text: fmt.Sprintf("  projections by %s", p.by)})
	}
	if p.top > 0 {
		first = append(first, span{fmt.Sprintf("  … %s above", plural(p.top, "more line")), dim})
	}
	if p.failed != nil {
		first = line{{fmt.Sprintf("can't read the status since %s UTC: %v", p.at.UTC().Format(time.DateTime), p.failed), red}}
	}
	frame := append([]line{first}, body[p.top:min(len(body), p.top+p.room())]...)
	for len(frame) < p.height-2 {
		frame = append(frame, nil)
	}
	more := line(nil)
	if below > 0 {
		more = line{{fmt.Sprintf("… %s below", plural(below, "more line")), dim}}
	}
	frame = append(frame, more, p.help())
	for i := range frame {
		frame[i] = frame[i].cut(p.width)
	}
	return frame
}

// help names the keys.
func (p *pager) help() line {
	if !p.keys {
		return line{{"Ctrl-C quits", dim}}
	}
	l := line{{"↑↓jk PgUp PgDn  sort:", dim}}
	for _, s := range []struct {
		by   sorting
		name string
	}{{byWorst, "w worst"}, {byName, "n name"}, {byBehind, "b behind"}, {byParked, "p parked"}} {
		style := dim
		if s.by == p.by {
			style = bold
		}
		l = append(l, span{" ", dim}, span{s.name, style})
	}
	details := "v details"
	if p.verbose {
		details = "v summary"
	}
	return append(l, span{"  " + details + "  q quit", dim})
}
