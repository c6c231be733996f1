//go:build linux || darwin || freebsd

package embedpg

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNewestFirst(t *testing.T) {
	got := []string{
		"/usr/lib/postgresql/9.6/bin",
		"/usr/lib/postgresql/latest/bin",
		"/usr/lib/postgresql/15/bin",
		"/usr/lib/postgresql/17/bin",
	}
	slices.SortFunc(got, newestFirst)
	want := []string{
		"/usr/lib/postgresql/17/bin",
		"/usr/lib/postgresql/15/bin",
		"/usr/lib/postgresql/9.6/bin",
		"/usr/lib/postgresql/latest/bin",
	}
	if !slices.Equal(got, want) {
		t.Errorf("order %q, want %q", got, want)
	}
}

// brokenFolders are installations that must be passed over, and why.
func brokenFolders(t *testing.T) (folders, reasons []string) {
	parent := sharedTemp(t)
	for _, f := range []struct {
		name, reason string
		programs     map[string]string
		mode         os.FileMode
	}{
		{"client", "no initdb", map[string]string{"pg_ctl": "", "postgres": ""}, 0o755},
		{"plain", "initdb is not executable", map[string]string{"initdb": "", "pg_ctl": "", "postgres": ""}, 0o644},
		{"library", "exit status 127: library missing", map[string]string{"initdb": "", "pg_ctl": "", "postgres": "echo library missing; exit 127"}, 0o755},
		{"ancient", "postgres (PostgreSQL) 9.6.24 is older than 13", map[string]string{"initdb": "", "pg_ctl": "", "postgres": "echo 'postgres (PostgreSQL) 9.6.24'"}, 0o755},
		{"damaged", "initialise failed:\n      no template", map[string]string{"initdb": "echo no template; exit 1", "pg_ctl": "", "postgres": "echo 15.1"}, 0o755},
	} {
		folder := filepath.Join(parent, f.name)
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		for program, script := range f.programs {
			if err := os.WriteFile(filepath.Join(folder, program), []byte("#!/bin/sh\n"+script+"\n"), f.mode); err != nil {
				t.Fatal(err)
			}
		}
		folders, reasons = append(folders, folder), append(reasons, f.reason)
	}
	return folders, reasons
}

func TestBrokenInstallationsPassedOver(t *testing.T) {
	folders, _ := brokenFolders(t)
	m := thisMachine(t.Context())
	m.folders = append(folders, m.folders...)
	query(t, open(t, startOn(t, Options{}, m).URL("postgres")), "SELECT 1")
}

func TestErrorListsWhatWasTried(t *testing.T) {
	tmp := sharedTemp(t)
	t.Setenv("TMPDIR", tmp)
	t.Setenv("EMBEDPG_TEST_URL", "")
	folders, reasons := brokenFolders(t)
	closed := "http://" + closedPort(t)

	_, err := start(t.Context(), Options{EnvVar: "EMBEDPG_TEST_URL"}, machine{folders: folders, repository: closed})
	if err == nil {
		t.Fatal("a server out of nothing")
	}
	want := []string{
		"no PostgreSQL is available. Tried:\n  - EMBEDPG_TEST_URL: not set\n",
		"\n  - download from " + closed + ": ", "connection refused",
		"\nWhat to do: set EMBEDPG_TEST_URL to a server on which you can create databases, " +
			"install PostgreSQL 13 or newer, or allow the download",
	}
	for i, folder := range folders {
		want = append(want, "\n  - "+folder+": ", reasons[i])
	}
	for _, part := range want {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error lacks %q", part)
		}
	}
	if t.Failed() {
		t.Logf("the error:\n%v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(tmp, runPrefix+"*")); len(left) > 0 {
		t.Errorf("files remain: %q", left)
	}
}

// The archive holds scripts that run the machine's own binaries. On a machine
// without any, all other tests have downloaded the real one.
func TestDownload(t *testing.T) {
	var bin string
	for _, folder := range thisMachine(t.Context()).folders {
		if check(t.Context(), serverAccount(), folder) == nil {
			bin = folder
			break
		}
	}
	if bin == "" {
		return
	}
	t.Setenv("TMPDIR", sharedTemp(t))
	jar := archive(t, bin)
	var asked []string
	repository := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		if strings.HasSuffix(r.URL.Path, ".jar") {
			_, _ = w.Write(jar)
			return
		}
		http.NotFound(w, r) // no checksum
	}))
	defer repository.Close()
	m := machine{repository: repository.URL, cache: filepath.Join(t.TempDir(), "cache")}

	for range 2 {
		s := startOn(t, Options{}, m)
		query(t, open(t, s.URL("postgres")), "SELECT 1")
		if !strings.Contains(s.Source(), "download") {
			t.Errorf("Source() = %q, want it to name the download", s.Source())
		}
		folder := s.cluster.folder
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(folder); !os.IsNotExist(err) {
			t.Errorf("run folder after Stop: %v, want none", err)
		}
	}
	if len(asked) != 2 { // the archive and its checksum
		t.Errorf("requests %q, want the second start to use the cache", asked)
	}
}

func TestDownloadFails(t *testing.T) {
	stalled := make(chan struct{})
	tests := map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"no such archive": {http.NotFound, "404 Not Found"},
		"cut short": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte("half"))
		}, "unexpected EOF"},
		"something else": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("log in to the hotel's network"))
		}, "checksums do not match"},
		"stalled": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_ = http.NewResponseController(w).Flush()
			close(stalled)
			<-r.Context().Done()
		}, "context canceled"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			tmp := sharedTemp(t)
			t.Setenv("TMPDIR", tmp)
			repository := httptest.NewServer(test.answer)
			defer repository.Close()

			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if name == "stalled" {
				go func() {
					<-stalled
					cancel()
				}()
			}
			begun := time.Now()
			_, err := start(ctx, Options{Own: true}, machine{repository: repository.URL})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("start: %v, want %q", err, test.want)
			}
			if took := time.Since(begun); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
			if left, _ := filepath.Glob(filepath.Join(tmp, runPrefix+"*")); len(left) > 0 {
				t.Errorf("files remain: %q", left)
			}
		})
	}
}

// archive builds what the repository serves: a jar with a .txz of the binaries.
func archive(t *testing.T, bin string) []byte {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var files bytes.Buffer
	tw := tar.NewWriter(&files)
	for _, program := range []string{"initdb", "pg_ctl", "postgres"} {
		script := fmt.Sprintf("#!/bin/sh\nexec '%s' \"$@\"\n", filepath.Join(bin, program))
		must(tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/" + program, Mode: 0o755, Size: int64(len(script))}))
		_, err := tw.Write([]byte(script))
		must(err)
	}
	must(tw.Close())

	var jar bytes.Buffer
	zw := zip.NewWriter(&jar)
	w, err := zw.Create("postgres.txz")
	must(err)
	_, err = w.Write(storeXZ(files.Bytes()))
	must(err)
	must(zw.Close())
	return jar.Bytes()
}

// storeXZ wraps data in an xz stream without compressing it: one block of
// LZMA2's stored chunks, no checksum.
func storeXZ(data []byte) []byte {
	sum := func(b []byte) []byte { return binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(b)) }
	pad := func(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }
	flags := []byte{0, 0}

	header := pad([]byte{2, 0, 0x21, 1, 0}) // size in words less one, flags, LZMA2, its one property
	block := append(header, sum(header)...)
	kind := byte(1) // the first chunk resets the dictionary
	for chunk := range slices.Chunk(data, 1<<16) {
		block = append(block, kind)
		block = binary.BigEndian.AppendUint16(block, uint16(len(chunk)-1))
		block = append(block, chunk...)
		kind = 2
	}
	block = append(block, 0)

	index := binary.AppendUvarint([]byte{0, 1}, uint64(len(block)))
	index = pad(binary.AppendUvarint(index, uint64(len(data))))
	index = append(index, sum(index)...)
	tail := append(binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1)), flags...)

	return slices.Concat([]byte("\xfd7zXZ\x00"), flags, sum(flags),
		pad(block), index, sum(tail), tail, []byte("YZ"))
}
