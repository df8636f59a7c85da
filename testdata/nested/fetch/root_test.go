package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

func TestHave(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "there"), 0o755))
	w := want{name: "x", recipe: "2"}
	for _, tc := range []struct {
		name string
		held nested.Component
		want bool
	}{
		{"another component", nested.Component{Name: "y", Dir: "there", Recipe: "2"}, false},
		{"there", nested.Component{Name: "x", Dir: "there", Recipe: "2"}, true},
		{"of an older recipe", nested.Component{Name: "x", Dir: "there", Recipe: "1"}, false},
		{"removed", nested.Component{Name: "x", Dir: "gone", Recipe: "2"}, false},
		{"not in the archive", nested.Component{Name: "x", Absent: "why"}, true},
		{"could not be made", nested.Component{Name: "x", Absent: "why", Again: true}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := &nested.Manifest{Components: []nested.Component{tc.held}}
			assert.Equal(t, tc.want, have(dir, m, w))
		})
	}
}

// TestMakeImage: the tree is in the image, which is not much larger.
func TestMakeImage(t *testing.T) {
	if _, err := nested.ProgramCommand(t.Context(), nested.ComponentExt, "sbin/mke2fs"); err != nil {
		t.Skipf("%v", err)
	}
	tree, image := t.TempDir(), filepath.Join(t.TempDir(), "root.img")
	for i := range 3000 {
		require.NoError(t, writeNew(filepath.Join(tree, "etc", fmt.Sprint(i)), "file", 0o644))
	}
	require.NoError(t, os.Symlink("/dev/null", filepath.Join(tree, "etc/masked")))
	require.NoError(t, makeImage(t.Context(), tree, image, rootSpare, rootInodes))
	st, err := os.Stat(image)
	require.NoError(t, err)
	assert.Less(t, st.Size(), int64(80<<20))

	run := func(program string, args ...string) string {
		cmd, err := nested.ProgramCommand(context.Background(), nested.ComponentExt, program, args...)
		require.NoError(t, err)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	run("sbin/e2fsck", "-f", "-n", image)
	assert.Contains(t, run("sbin/debugfs", "-R", "cat /etc/2999", image), "file")
	assert.Contains(t, run("sbin/debugfs", "-R", "stat /etc/masked", image), `Fast link dest: "/dev/null"`)
}

func TestLastLines(t *testing.T) {
	assert.Equal(t, "b; c", lastLines("a\nb\nc\n", 2))
	assert.Equal(t, "a", lastLines("a\n", 2))
}
