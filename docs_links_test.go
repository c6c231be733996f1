package orchestrator_test

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

// In README.md, ARCHITECTURE.md and docs, each relative link leads to a file of the
// repository, and each anchor to a heading.
func TestLinksOfTheDocs(t *testing.T) {
	t.Parallel()
	root := os.DirFS(".")
	for _, page := range docsPages(t, root) {
		t.Run(page, func(t *testing.T) {
			t.Parallel()
			for _, problem := range brokenLinks(t, root, page) {
				t.Error(problem)
			}
		})
	}
}

// Each page of docs is linked from README.md or another page.
func TestPagesAreLinked(t *testing.T) {
	t.Parallel()
	for _, page := range unlinkedPages(t, os.DirFS(".")) {
		t.Errorf("no page links to %s", page)
	}
}

func TestLinkCheck(t *testing.T) {
	t.Parallel()
	root := fstest.MapFS{
		"README.md": {Data: []byte("# A\n[to b](docs/b.md#the-b-it-is), [out](https://example.com/x.md), [code](docs/b.md#in-code),\n[gone](docs/gone.md)\n")},
		"docs/b.md": {Data: []byte("# B\n\n## The `b`: \"it is\"\n## Same\n## Same\n[1](#same-1) [2](#same-2) [a](../README.md#a) ![p](p.svg)\n`[no](link.md)`\n```\n# In code\n[no](link.md)\n```\n[folder](../docs) [above](../../x)\n[two\nlines](nowhere.md)\n")},
		"docs/c.md": {Data: []byte("# C\n[myself](c.md)\n")},
		"docs/d.md": {Data: []byte("# D\n[r]\n\n[r]: <b.md#none>\n<a href=\"b.md#same\"><img src='no.png'></a> [b](b.md)\n")},
	}
	want := map[string][]string{
		"README.md": {`README.md:2: docs/b.md#in-code: docs/b.md has no heading "in-code"`, "README.md:3: docs/gone.md: there is no docs/gone.md"},
		"docs/b.md": {`docs/b.md:6: #same-2: docs/b.md has no heading "same-2"`, "docs/b.md:6: p.svg: there is no docs/p.svg",
			"docs/b.md:12: ../../x: it leads out of the repository", "docs/b.md:14: nowhere.md: there is no docs/nowhere.md"},
		"docs/c.md": nil,
		"docs/d.md": {`docs/d.md:4: b.md#none: docs/b.md has no heading "none"`, "docs/d.md:5: no.png: there is no docs/no.png"},
	}
	got := map[string][]string{}
	for _, page := range docsPages(t, root) {
		got[page] = brokenLinks(t, root, page)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"docs/c.md", "docs/d.md"}, unlinkedPages(t, root)); diff != "" {
		t.Errorf("unlinked, -want +got:\n%s", diff)
	}
}

// docsPages returns the pages whose links are checked.
func docsPages(t *testing.T, root fs.FS) []string {
	t.Helper()
	pages, err := fs.Glob(root, "docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	for _, name := range []string{"ARCHITECTURE.md", "README.md"} {
		if _, err := fs.Stat(root, name); err == nil {
			pages = append(pages, name)
		}
	}
	slices.Sort(pages)
	return pages
}

// A pageLink is a relative link: what is written, on which line, and where it leads.
type pageLink struct {
	line                 int
	target, file, anchor string
}

var (
	fencePattern  = regexp.MustCompile("(?ms)^[ \t]*(```+)[^`\n]*\n.*?(?:^[ \t]*```+[ \t]*$|\\z)")
	spanPattern   = regexp.MustCompile("`[^`\n]+`")
	targetPattern = regexp.MustCompile(`\]\(<?([^)>\s]+)|(?m:^[ ]{0,3}\[[^\]\n]+\]:[ \t]+<?([^>\s]+))|(?:href|src)=["']([^"']+)["']`)
)

// blank replaces text by as many spaces, and keeps its lines.
func blank(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' {
			return r
		}
		return ' '
	}, text)
}

// linksOf returns the relative links of a page.
func linksOf(t *testing.T, root fs.FS, page string) (links []pageLink) {
	t.Helper()
	data, err := fs.ReadFile(root, page)
	if err != nil {
		t.Fatal(err)
	}
	text := spanPattern.ReplaceAllStringFunc(fencePattern.ReplaceAllStringFunc(string(data), blank), blank)
	for _, m := range targetPattern.FindAllStringSubmatchIndex(text, -1) {
		begin, end := m[2], m[3]
		for i := 4; begin < 0; i += 2 {
			begin, end = m[i], m[i+1]
		}
		l := pageLink{line: 1 + strings.Count(text[:begin], "\n"), target: text[begin:end]}
		if regexp.MustCompile(`^([a-z][a-z0-9+.-]*:|//)`).MatchString(l.target) {
			continue
		}
		file, anchor, _ := strings.Cut(l.target, "#")
		l.anchor, l.file = anchor, page
		switch {
		case strings.HasPrefix(file, "/"):
			l.file = path.Clean(strings.TrimPrefix(file, "/"))
		case file != "":
			l.file = path.Join(path.Dir(page), file)
		}
		links = append(links, l)
	}
	return links
}

// brokenLinks says which links of a page lead nowhere.
func brokenLinks(t *testing.T, root fs.FS, page string) (problems []string) {
	t.Helper()
	for _, l := range linksOf(t, root, page) {
		report := func(format string, args ...any) {
			problems = append(problems, fmt.Sprintf("%s:%d: %s: %s", page, l.line, l.target, fmt.Sprintf(format, args...)))
		}
		if !fs.ValidPath(l.file) {
			report("it leads out of the repository")
			continue
		}
		if _, err := fs.Stat(root, l.file); err != nil {
			report("there is no %s", l.file)
			continue
		}
		if l.anchor != "" && path.Ext(l.file) == ".md" && !slices.Contains(anchorsOf(t, root, l.file), l.anchor) {
			report("%s has no heading %q", l.file, l.anchor)
		}
	}
	return problems
}

// anchorsOf returns the anchors that GitHub gives the headings of a page.
func anchorsOf(t *testing.T, root fs.FS, page string) (anchors []string) {
	t.Helper()
	data, err := fs.ReadFile(root, page)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for line := range strings.Lines(fencePattern.ReplaceAllStringFunc(string(data), blank)) {
		heading := regexp.MustCompile(`^ {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*\n?$`).FindStringSubmatch(line)
		if heading == nil {
			continue
		}
		text := regexp.MustCompile(`!?\[([^\]]*)\]\([^)]*\)`).ReplaceAllString(heading[1], "$1")
		slug := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r) || unicode.IsMark(r):
				return unicode.ToLower(r)
			}
			return -1
		}, text)
		n := seen[slug]
		seen[slug]++
		if n > 0 {
			slug = fmt.Sprintf("%s-%d", slug, n)
		}
		anchors = append(anchors, slug)
	}
	return anchors
}

// unlinkedPages returns the pages of docs to which no other page leads.
func unlinkedPages(t *testing.T, root fs.FS) (unlinked []string) {
	t.Helper()
	pages := docsPages(t, root)
	linked := map[string]bool{}
	for _, page := range pages {
		for _, l := range linksOf(t, root, page) {
			linked[l.file] = linked[l.file] || l.file != page
		}
	}
	for _, page := range pages {
		if strings.HasPrefix(page, "docs/") && !linked[page] {
			unlinked = append(unlinked, page)
		}
	}
	return unlinked
}
