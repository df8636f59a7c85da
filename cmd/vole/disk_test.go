package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio/block"
)

// TestBadDisks: each is refused with one line and exit code 2.
func TestBadDisks(t *testing.T) {
	kernel := file(t, "kernel", payload(powerOff()))
	good := file(t, "good.img", make([]byte, 4096))
	qcow2 := file(t, "disk.qcow2", append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 1016)...))
	over := []byte("QFI\xfb\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x02\x00") // its backing file's name is at 512
	backed := file(t, "backed.qcow2", append(over, make([]byte, 1008)...))
	held := file(t, "held.img", make([]byte, 4096))
	img, err := block.Open(block.OpenOptions{Path: held})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, img.(*block.File).Close()) })

	for name, tc := range map[string]struct {
		disks []string
		more  []string
		want  []string
	}{
		"missing":            {disks: []string{"/nowhere/disk.img"}, want: []string{"/nowhere/disk.img"}},
		"a directory":        {disks: []string{t.TempDir()}, want: []string{"directory"}},
		"a character device": {disks: []string{"/dev/null"}, want: []string{"/dev/null"}},
		"zero-length":        {disks: []string{file(t, "empty.img", nil)}, want: []string{"empty.img"}},
		"odd length":         {disks: []string{file(t, "odd.img", make([]byte, 1000))}, want: []string{"odd.img", "512"}},
		"twice":              {disks: []string{good, good}, want: []string{good, "in use"}},
		"in use elsewhere":   {disks: []string{held}, want: []string{held, "in use"}},
		"an unnamed qcow2":   {disks: []string{qcow2}, want: []string{qcow2, "format=qcow2"}},
		"qcow2 for writing":  {disks: []string{qcow2 + ",format=qcow2"}, want: []string{qcow2, ",ro"}},
		"a broken qcow2":     {disks: []string{qcow2 + ",format=qcow2,ro"}, want: []string{qcow2}},
		"a backed qcow2":     {disks: []string{backed + ",format=qcow2,ro"}, want: []string{backed, "backing file"}},
		"no file":            {disks: []string{",ro"}, want: []string{"names no file"}},
		"an unknown option":  {disks: []string{good + ",fast"}, want: []string{`"fast"`}},
		"an option twice":    {disks: []string{good + ",ro,ro"}, want: []string{"ro is given more than once"}},
		"an unknown format":  {disks: []string{good + ",format=vmdk"}, want: []string{`"vmdk"`}},
		"an unknown cache":   {disks: []string{good + ",cache=fast"}, want: []string{"fast"}},
		"a serial too long":  {disks: []string{good + ",serial=" + strings.Repeat("x", 21)}, want: []string{"serial", "20"}},
		"no limit of cow":    {disks: []string{good + ",cow=memory,cow-limit=0"}, want: []string{"cow-limit", `"0"`}},
		"a limit of nothing": {disks: []string{good + ",ro,cow-limit=1M"}, want: []string{"cow-limit"}},
		"no queues":          {disks: []string{good + ",queues=0"}, want: []string{"queues", `"0"`}},
		"more than slots":    {disks: slices.Repeat([]string{good + ",ro"}, 32), want: []string{"32 devices are too many", "31"}},
		"more than mmio slots": {disks: slices.Repeat([]string{good + ",ro"}, 19), more: []string{"--transport", "mmio"},
			want: []string{"19 devices are too many", "18"}},
		"an unknown transport": {disks: []string{good}, more: []string{"--transport", "usb"}, want: []string{"--transport", `"usb"`}},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"run", "-k", kernel}, tc.more...)
			for _, d := range tc.disks {
				args = append(args, "--disk", d)
			}
			r := vole(t, args...)
			assert.Equal(t, codeUsage, r.code, r.stderr)
			assert.Empty(t, r.stdout)
			assert.Equal(t, 1, strings.Count(r.stderr, "\n"), r.stderr)
			for _, want := range tc.want {
				assert.Contains(t, r.stderr, want)
			}
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		require.NoError(t, os.Chmod(good, 0))
		require.NoError(t, os.Chmod(kernel, 0o644))
		cmd := command(t, "run", "-k", kernel, "--disk", good)
		unprivileged(t, cmd, good)
		r := finish(t, cmd)
		assert.Equal(t, codeUsage, r.code, r.stderr)
		assert.Contains(t, r.stderr, good)
		assert.Contains(t, r.stderr, "permission denied")
		assert.Equal(t, 1, strings.Count(r.stderr, "\n"), r.stderr)
	})
}

// unprivileged lets cmd run as another user if this is root, who may read everything, and lets that
// user into the directory of path.
func unprivileged(t *testing.T, cmd *exec.Cmd, path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	for dir := filepath.Dir(path); dir != filepath.Clean(os.TempDir()); dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	// The test binary lies in a directory that the other user can't reach.
	exe, err := os.Open(cmd.Path)
	require.NoError(t, err)
	t.Cleanup(func() { exe.Close() })
	cmd.ExtraFiles = []*os.File{exe}
	cmd.Path = "/proc/self/fd/3"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}
