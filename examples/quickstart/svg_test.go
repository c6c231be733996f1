package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestEncode(t *testing.T) {
	line := func(style, text string) []span { return []span{{style, 0, text}} }
	frames := []frame{
		{1 * time.Second, [][]span{line("", `a <b> & "c"`)}},
		{2 * time.Second, [][]span{line("", `a <b> & "c"`)}}, // the same again
		{3 * time.Second, [][]span{line("1;32", "███░░"), line("", "two  words")}},
		{7 * time.Second, [][]span{nil, line("", "the end")}},
	}
	var b bytes.Buffer
	encode(&b, movie{title: "a & b", description: "c < d", columns: 80, rows: 2, speed: 2, rest: time.Second, frames: frames})
	text := b.String()

	elements, texts := map[string]int{}, []string{}
	for d := xml.NewDecoder(&b); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, text)
		}
		switch token := token.(type) {
		case xml.StartElement:
			elements[token.Name.Local]++
			for _, a := range token.Attr {
				if a.Name.Local == "class" && a.Value == "f" {
					elements["frame"]++
				}
			}
		case xml.CharData:
			texts = append(texts, string(token))
		}
	}
	if elements["frame"] != 3 {
		t.Errorf("got %d frames, want 3: two of the four show the same", elements["frame"])
	}
	if elements["script"]+elements["image"]+elements["foreignObject"] > 0 {
		t.Errorf("GitHub shows no such elements: %v", elements)
	}
	all := strings.Join(texts, "|")
	for _, want := range []string{`a <b> & "c"`, "|two|", "|words|", "|the end|", "a & b", "c < d", "2× speed"} {
		if !strings.Contains(all, want) {
			t.Errorf("the texts lack %q: %q", want, texts)
		}
	}
	for _, want := range []string{
		"@media (prefers-reduced-motion:no-preference){.s{animation:s 4.00s step-end infinite}}", // 6s at twice the speed, and 1s
		".s{transform:translateX(-1400px)}", // without animation, the last frame
		"0.00%{transform:translateX(0px)}\n25.00%{transform:translateX(-700px)}\n75.00%{transform:translateX(-1400px)}",
		`<rect class="s1 s32" x="0" y="3" width="25.2" height="12"/><rect class="s1 s32" x="25.2"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the SVG lacks %s\n%s", want, text)
		}
	}
}

// A screen shows what a terminal does of what the display writes.
func TestScreen(t *testing.T) {
	var s screen
	d := &display{out: &s, live: true, colour: true, begun: time.Now()}
	d.draw("first\n", []string{"old block", d.paint(green, "two")})
	d.draw("second\n", []string{"new block"})
	d.line(bold, "w1", "starts")
	var lines []string
	for _, line := range s.spans() {
		var b strings.Builder
		for _, s := range line {
			b.WriteString(s.text + "{" + s.style + "}")
		}
		lines = append(lines, b.String())
	}
	want := "first{}|second{}|+ 0.0s  {2}w1 {36}  {}starts{1}|new block{}"
	if got := strings.Join(lines, "|"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}

	for range screenRows + 5 {
		d.line("", "", "more")
	}
	if n := len(s.spans()); n > screenRows {
		t.Errorf("it has %d lines, want at most %d", n, screenRows)
	}
	d.end()
	if last := s.spans()[len(s.spans())-1]; len(last) > 0 && strings.Contains(last[0].text, "block") {
		t.Errorf("the block is still there: %v", last)
	}
}

// A recorder takes frames at a distance, and the last one in any case.
func TestRecorder(t *testing.T) {
	var now time.Duration
	r := &recorder{since: func() time.Duration { return now }}
	for i, text := range []string{"one\n", "two\n", "three\n", "four\n"} {
		now = time.Duration(i) * frameInterval * 2 / 3
		if _, err := r.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Join(t.TempDir(), "demo.svg")
	now += time.Minute
	r.screen.Write([]byte("five"))
	if err := r.save(name); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	// "two" and "four" were written soon after the frame before.
	if n := strings.Count(string(text), `class="f"`); n != 3 {
		t.Errorf("got %d frames, want 3: with one, with three, with five", n)
	}
	for _, want := range []string{">one<", ">two<", ">five<", "go run ./examples/quickstart"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the file lacks %q", want)
		}
	}
}

// Only keys that mean something arrive, one for each time they are pressed.
func TestReadKeys(t *testing.T) {
	keys := make(chan byte, 8)
	readKeys(context.Background(), strings.NewReader("xk\x1b[A+F\nq"), keys)
	close(keys)
	var got []byte
	for key := range keys {
		got = append(got, key)
	}
	if string(got) != "k+q" {
		t.Errorf("got %q, want k+q", got)
	}
}
