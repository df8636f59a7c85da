package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestFilesRefused: neither file has changed, and none is new, when one of the two can't be had.
func TestFilesRefused(t *testing.T) {
	const before = "what was there before"
	dir := t.TempDir()
	old, fresh := filepath.Join(dir, "old"), filepath.Join(dir, "new")
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, os.WriteFile(old, []byte(before), 0o600))
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	for name, tc := range map[string]struct{ console, report, want string }{
		"old and nowhere":  {old, "/nowhere/x", "--report: open /nowhere/x"},
		"new and nowhere":  {fresh, "/nowhere/x", "--report: open /nowhere/x"},
		"nowhere and old":  {"/nowhere/x", old, "--console: open /nowhere/x"},
		"old and a FIFO":   {old, fifo, "--report: open " + fifo + ": nobody reads this FIFO"},
		"twice the same":   {old, old, "--report: " + old + " is the file of --console too"},
		"twice a new one":  {fresh, fresh, "--report: " + fresh + " is the file of --console too"},
		"new and its link": {fresh, link(t, fresh), "is the file of --console"},
	} {
		t.Run(name, func(t *testing.T) {
			r := vole(t, machineArgs(t, powerOff(), "--console", tc.console, "--report", tc.report)...)
			assert.Equal(t, codeUsage, r.code, r.stderr)
			assert.Contains(t, r.stderr, tc.want)
			assert.Equal(t, 1, strings.Count(r.stderr, "\n"), r.stderr)
			got, err := os.ReadFile(old)
			require.NoError(t, err)
			assert.Equal(t, before, string(got))
			assert.NoFileExists(t, fresh)
		})
	}
}

// link is a symbolic link to path.
func link(t *testing.T, path string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(path, name))
	return name
}

// TestFilesOfTheGuest: what the guest is made of is not written over.
func TestFilesOfTheGuest(t *testing.T) {
	image := make([]byte, 4096)
	disk := file(t, "disk.img", image)
	args := machineArgs(t, powerOff(), "--disk", disk+",ro")
	kernel, initrd := args[2], args[4]
	hard := filepath.Join(filepath.Dir(disk), "hard.img")
	require.NoError(t, os.Link(disk, hard))
	for _, flag := range []string{"--console", "--report"} {
		for name, tc := range map[string]struct{ path, want string }{
			"kernel":             {kernel, "--kernel"},
			"initrd":             {initrd, "--initrd"},
			"disk":               {disk, "--disk"},
			"disk, by symlink":   {link(t, disk), "--disk"},
			"disk, by hard link": {hard, "--disk"},
		} {
			t.Run(flag+" is "+name, func(t *testing.T) {
				old, err := os.ReadFile(tc.path)
				require.NoError(t, err)
				r := vole(t, append(args, flag, tc.path)...)
				assert.Equal(t, codeUsage, r.code, r.stderr)
				assert.Contains(t, r.stderr, "vole: run: "+flag+": "+tc.path+" is the file of "+tc.want+" too")
				assert.Equal(t, 1, strings.Count(r.stderr, "\n"), r.stderr)
				got, err := os.ReadFile(tc.path)
				require.NoError(t, err)
				assert.Equal(t, old, got)
			})
		}
	}
	t.Run("a report of no machine", func(t *testing.T) {
		// Huge pages that the host has not reserved are its error, before there is a machine.
		r := vole(t, append(args, "--report", disk, "--memory-backing", "memfd", "--huge-pages", "reserved")...)
		assert.NotEqual(t, codeOK, r.code)
		got, err := os.ReadFile(disk)
		require.NoError(t, err)
		assert.Equal(t, image, got)
	})
}

// TestFilesShared: what is no storage may be named as often as one likes.
func TestFilesShared(t *testing.T) {
	r := vole(t, machineArgs(t, powerOff(), "--console", os.DevNull, "--report", os.DevNull)...)
	assert.Equal(t, codeOK, r.code, r.stderr)
}

func TestReportLost(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skipf("needs /dev/full: %v", err)
	}
	const why = "--report: write /dev/full: no space left on device\n"
	for name, tc := range map[string]struct {
		code []byte
		args []string
		want int
		says string
	}{
		"poweroff":     {powerOff(), nil, codeHost, "vole: run: " + why},
		"reset":        {reset(), nil, codeReset, "vole: run: warning: " + why + "vole: run: the guest reset\n"},
		"triple fault": {tripleFault, nil, codeTripleFault, "vole: run: warning: " + why + "vole: run: the guest can't go on"},
		"timeout":      {halt, []string{"--timeout", "100ms"}, codeTimeout, "vole: run: warning: " + why + "vole: run: --timeout has passed\n"},
	} {
		t.Run(name, func(t *testing.T) {
			r := vole(t, machineArgs(t, tc.code, append(tc.args, "--report", "/dev/full")...)...)
			assert.Equal(t, tc.want, r.code, r.stderr)
			assert.Contains(t, r.stderr, tc.says)
			assert.Equal(t, 1, strings.Count(r.stderr, "--report"), r.stderr)
		})
	}
}

// TestReportFIFO: a report goes to a FIFO that somebody reads, and is not waited for where nobody
// takes it.
func TestReportFIFO(t *testing.T) {
	open := func(t *testing.T) (path string, reader int) {
		path = filepath.Join(t.TempDir(), "fifo")
		require.NoError(t, unix.Mkfifo(path, 0o600))
		reader, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		t.Cleanup(func() { unix.Close(reader) })
		return path, reader
	}
	t.Run("read", func(t *testing.T) {
		path, reader := open(t)
		r := vole(t, machineArgs(t, powerOff(), "--report", path)...)
		assert.Equal(t, codeOK, r.code, r.stderr)
		got := make([]byte, 1<<16)
		n, err := unix.Read(reader, got)
		require.NoError(t, err)
		assert.Contains(t, string(got[:max(n, 0)]), "timeline  from the start of the process\n")
	})
	t.Run("full", func(t *testing.T) {
		path, _ := open(t)
		w, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(w)
		fillPipe(t, w)
		r := vole(t, machineArgs(t, reset(), "--report", path)...)
		assert.Equal(t, codeReset, r.code, r.stderr)
		assert.Contains(t, r.stderr, "vole: run: warning: --report: write "+path+": i/o timeout\n")
	})
}
