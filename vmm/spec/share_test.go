package spec

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/fs"
	"github.com/vole-vmm/vole/virtio/fs/hostdir"
)

func TestParseShare(t *testing.T) {
	for in, want := range map[string]Share{
		"/srv:data":                      {Dir: "/srv", Tag: "data"},
		"dir:a:b":                        {Dir: "dir:a", Tag: "b"},
		"a,,b:t,ro":                      {Dir: "a,b", Tag: "t", ReadOnly: true},
		".:t,ro=off,cache=none":          {Dir: ".", Tag: "t", Cache: "none"},
		"/:t,xattr,locks=host":           {Dir: "/", Tag: "t", Xattr: true, Locks: "host"},
		"/:t,owner=0:0,cache=always":     {Dir: "/", Tag: "t", Owner: "0:0", Cache: "always"},
		"a:b,,c":                         {Dir: "a", Tag: "b,c"},
		strings.Repeat("d", 5000) + ":t": {Dir: strings.Repeat("d", 5000), Tag: "t"},
	} {
		t.Run(in[:min(len(in), 40)], func(t *testing.T) {
			got, err := ParseShare(in)
			require.NoError(t, err)
			assert.Equal(t, want, got)
		})
	}
}

// TestShareUsage: the form names every option.
func TestShareUsage(t *testing.T) {
	for _, o := range shareOptions {
		assert.Regexp(t, `\[,`+o.name+`[\]\[=]`, ShareUsage)
	}
}

func TestParseShareRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"":                  "has no tag",
		"/srv":              "has no tag",
		":data":             "names no directory",
		"/srv:":             "has an empty tag",
		"/srv:data,rw":      `"rw" is no option of a share`,
		"/srv:data,":        `"" is no option of a share`,
		"/srv:data,ro,ro":   "ro is given more than once",
		"/srv:data,ro=yes":  `"yes" is neither on nor off`,
		"/srv:data,cache":   "cache needs a value",
		"/srv:data,owner=":  "owner is empty",
		"/srv,ro:data":      "has no tag",
		"/srv:data,xattr=1": `"1" is neither on nor off`,
	} {
		t.Run(in, func(t *testing.T) {
			_, err := ParseShare(in)
			assert.ErrorContains(t, err, want)
		})
	}
}

func TestShareValues(t *testing.T) {
	for name, tc := range map[string]struct {
		shares []Share
		want   string
	}{
		"no directory":     {[]Share{{Tag: "t"}}, "names no directory"},
		"a NUL":            {[]Share{{Dir: "a\x00b", Tag: "t"}}, "NUL"},
		"no tag":           {[]Share{{Dir: "d"}}, "d: the tag is empty"},
		"a long tag":       {[]Share{{Dir: "d", Tag: strings.Repeat("t", 37)}}, "37 bytes"},
		"a NUL in the tag": {[]Share{{Dir: "d", Tag: "a\x00"}}, "can't be printed"},
		"a tag twice":      {[]Share{{Dir: "a", Tag: "t"}, {Dir: "b", Tag: "t"}}, `b: two shares have the tag "t"`},
		"cache":            {[]Share{{Dir: "d", Tag: "t", Cache: "fast"}}, `cache: "fast" is not one of auto, none, always`},
		"locks":            {[]Share{{Dir: "d", Tag: "t", Locks: "both"}}, `locks: "both" is neither guest nor host`},
		"an owner":         {[]Share{{Dir: "d", Tag: "t", Owner: "root"}}, `owner: "root"`},
		"half an owner":    {[]Share{{Dir: "d", Tag: "t", Owner: "1"}}, `owner: "1"`},
		"a large owner":    {[]Share{{Dir: "d", Tag: "t", Owner: "1:4294967295"}}, `owner: "1:4294967295"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Machine{Shares: tc.shares}.Config()
			var field *FieldError
			require.ErrorAs(t, err, &field)
			assert.Equal(t, "share", field.Field)
			assert.ErrorContains(t, err, tc.want)
		})
	}
	dir, dev, err := Share{Dir: "d", Tag: "t", Cache: "always", Locks: "host", Owner: "1:2", ReadOnly: true, Xattr: true}.options(2)
	require.NoError(t, err)
	assert.Equal(t, fs.Options{Tag: "t", Queues: 2}, dev)
	assert.Equal(t, hostdir.Options{
		Dir: "d", ReadOnly: true, Cache: hostdir.CacheAlways, Locks: hostdir.LocksHost, Owner: &hostdir.Owner{UID: 1, GID: 2}, Xattr: true,
		Limits: hostdir.Limits{MaxLockWaits: fs.MaxBlocked},
	}, dir)
}

// TestShares: what is on the host is looked at when the devices are made, and
// nothing stays open when one can't be.
func TestShares(t *testing.T) {
	m, err := Decode(strings.NewReader(`{"share": [{"dir": "` + t.TempDir() + `", "tag": "a", "ro": true}, {"dir": "/", "tag": "b"}], "rng": true, "cpus": 9}`))
	require.NoError(t, err)
	_, err = m.Config()
	require.NoError(t, err)
	list, err := m.Devices(ConsoleStreams{}, nil)
	require.NoError(t, err)
	require.Len(t, list, 3)
	assert.Equal(t, virtio.TypeEntropy, list[2].Type(), "the last")
	assert.Equal(t, "b", list[1].(*fs.Device).Tag())
	assert.Len(t, list[0].QueueSizes(), 5)
	closeAll(list)

	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(fds)
	}
	before := open()
	for name, dir := range map[string]string{"missing": "/nowhere/at/all", "a file": file, "a device": "/dev/null", "the kernel's": "/proc"} {
		t.Run(name, func(t *testing.T) {
			m := Machine{Shares: []Share{{Dir: "/", Tag: "root"}, {Dir: dir, Tag: "t"}}}
			_, err := m.Devices(ConsoleStreams{}, nil)
			var field *FieldError
			require.ErrorAs(t, err, &field)
			assert.Equal(t, "share", field.Field)
			assert.ErrorContains(t, err, dir)
			assert.NotContains(t, err.Error(), "\n")
			assert.Equal(t, before, open())
		})
	}
	many := Machine{Shares: make([]Share, 40)}
	_, err = many.Config()
	assert.ErrorContains(t, err, "share: 40 devices are too many")
}
