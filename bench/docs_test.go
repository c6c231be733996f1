package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The first table of docs/performance.md has what its table of results has; and those that it
// names as missed are the goals that the results miss, all of them.
func TestFiguresOfTheDocs(t *testing.T) {
	page, err := os.ReadFile("../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	first, rest, _ := strings.Cut(text, "\n## Ratios\n")
	_, rest, _ = strings.Cut(rest, "\n## Goals that were missed\n")
	missed, rest, _ := strings.Cut(rest, "\n## The results\n")
	results := map[string][]string{}
	named, seen := map[string][]string{}, 0
	for _, cells := range table(rest) {
		if name := strings.Trim(cells[0], "`"); name != cells[0] && len(cells) == 9 {
			results[name] = cells
		}
	}
	for _, cells := range table(missed) {
		named[strings.Trim(cells[0], "`")] = cells
	}
	worst := regexp.MustCompile(`max (\S+)`)
	for _, cells := range table(first) {
		name := strings.Trim(cells[len(cells)-1], "`")
		r := results[name]
		if name == cells[len(cells)-1] { // the heading, and the line below
			continue
		}
		if r == nil {
			t.Errorf("there is no result %q", name)
			continue
		}
		most := ""
		if m := worst.FindStringSubmatch(r[2]); m != nil {
			most = m[1] + " ms"
		}
		if cells[1] != r[1] || cells[2] != most {
			t.Errorf("%s is %q, at most %q; the results say %q and %q", name, cells[1], cells[2], r[1], most)
		}
		seen++
	}
	for name, r := range results {
		n := named[name]
		switch {
		case r[7] == "no" && n == nil:
			t.Errorf("%s missed its goal, and is not among those that did", name)
		case r[7] != "no" && n != nil:
			t.Errorf("%s is among the goals that were missed, and was not", name)
		case n != nil && n[2] != r[6]:
			t.Errorf("the goal of %s is %q, the results say %q", name, n[2], r[6])
		case n != nil:
			for _, figure := range regexp.MustCompile(`[\d.]+`).FindAllString(n[1], -1) {
				if !strings.Contains(strings.Join(r[1:5], " "), figure) && figure != "99" {
					t.Errorf("%s is %s, which the results don't say", name, n[1])
				}
			}
		}
	}
	if seen < 15 || len(results) < 50 {
		t.Errorf("%d figures of %d results were compared", seen, len(results))
	}
}

// table returns the cells of the lines of tables.
func table(text string) (rows [][]string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			continue
		}
		cells := strings.Split(strings.TrimSuffix(strings.TrimPrefix(line, "|"), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	return rows
}
