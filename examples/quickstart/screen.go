package main

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A screen is what a terminal shows of what is written to it. It knows what the display asks
// of a terminal, and nothing else.
type screen struct {
	lines [][]cell
	x, y  int
	style string // of what is written next
}

const (
	screenColumns = 80
	screenRows    = 32
)

// A cell is a character on the screen.
type cell struct {
	rune
	style string
}

func (s *screen) Write(p []byte) (int, error) {
	for text := string(p); text != ""; {
		if rest, ok := strings.CutPrefix(text, "\x1b["); ok {
			end := strings.IndexFunc(rest, func(r rune) bool { return r >= '@' && r <= '~' })
			if end < 0 {
				break
			}
			s.control(rest[end], rest[:end])
			text = rest[end+1:]
			continue
		}
		for i, r := range text {
			if i > 0 && r == '\x1b' {
				text = text[i:]
				break
			}
			s.put(r)
			if i+len(string(r)) >= len(text) {
				text = ""
			}
		}
	}
	return len(p), nil
}

func (s *screen) control(final byte, parameters string) {
	switch final {
	case 'm':
		s.style = strings.TrimPrefix(parameters, "0")
	case 'A':
		n, _ := strconv.Atoi(parameters)
		s.y = max(s.y-n, 0)
	case 'J':
		s.lines = s.lines[:min(len(s.lines), s.y+1)]
		if s.y < len(s.lines) {
			s.lines[s.y] = s.lines[s.y][:min(len(s.lines[s.y]), s.x)]
		}
	}
}

func (s *screen) put(r rune) {
	switch {
	case r == '\r':
		s.x = 0
		return
	case r == '\n':
		s.x = 0
		if s.y++; s.y >= screenRows {
			s.lines = s.lines[1:]
			s.y--
		}
		return
	case s.x >= screenColumns:
		return
	}
	for len(s.lines) <= s.y {
		s.lines = append(s.lines, nil)
	}
	for len(s.lines[s.y]) <= s.x {
		s.lines[s.y] = append(s.lines[s.y], cell{' ', ""})
	}
	s.lines[s.y][s.x] = cell{r, s.style}
	s.x++
}

// spans are the lines as pieces of one style each.
func (s *screen) spans() [][]span {
	var lines [][]span
	for _, cells := range s.lines {
		var line []span
		for x, c := range cells {
			if x == 0 || c.style != cells[x-1].style {
				line = append(line, span{style: c.style, column: x})
			}
			line[len(line)-1].text += string(c.rune)
		}
		lines = append(lines, line)
	}
	return lines
}

// A recorder takes frames of a screen while it is written to.
type recorder struct {
	since func() time.Duration // the beginning

	mu     sync.Mutex
	screen screen
	frames []frame
}

// frameInterval is how far apart frames are at least.
const frameInterval = 240 * time.Millisecond

func newRecorder() *recorder {
	begun := time.Now()
	return &recorder{since: func() time.Duration { return time.Since(begun) }}
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, err := r.screen.Write(p)
	if at := r.since(); len(r.frames) == 0 || at-r.frames[len(r.frames)-1].at >= frameInterval {
		r.frames = append(r.frames, frame{at, r.screen.spans()})
	}
	return n, err
}

// save writes the recording to a file.
func (r *recorder) save(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	frames := append(r.frames, frame{r.since(), r.screen.spans()})
	var b bytes.Buffer
	encode(&b, movie{
		title:       "go run ./examples/quickstart",
		description: "A terminal. Worker processes share 20,000 events while workers join, one is killed, one is frozen and woken, and one is stopped. In the end no event is lost, duplicated or out of order, and no partition had two workers at once.",
		columns:     screenColumns, rows: screenRows,
		speed: 3, rest: 6 * time.Second,
		frames: frames,
	})
	return os.WriteFile(name, b.Bytes(), 0o644)
}
