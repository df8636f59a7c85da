package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOwnText(t *testing.T) {
	const exe = "/usr/bin/a vole"
	for line, want := range map[string][2]uintptr{
		"00401000-00866000 r-xp 00001000 08:01 123   " + exe:                {0x401000, 0x866000},
		"00866000-00c00000 r--p 00466000 08:01 123   " + exe:                {0x866000, 0xc00000},
		"00c00000-00c20000 rw-p 007ff000 08:01 123   " + exe:                {},
		"00401000-00866000 r-xp 00001000 08:01 123   /usr/bin/vole":         {},
		"00401000-00866000 r-xp 00001000 08:01 123   " + exe + " (deleted)": {},
		"7fff0000-7fff1000 r-xp 00000000 00:00 0     [vdso]":                {},
		"7fff0000-7fff1000 r--p 00000000 00:00 0 ":                          {},
		"nonsense r-xp " + exe:                                              {},
		"":                                                                  {},
	} {
		start, end, ok := ownText(line, exe)
		assert.Equal(t, want != [2]uintptr{}, ok, line)
		if ok {
			assert.Equal(t, want, [2]uintptr{start, end}, line)
		}
	}
}

// TestTrimText: less is resident afterwards, and all works on.
func TestTrimText(t *testing.T) {
	if traced() {
		t.Skip("a debugger has this process")
	}
	resident := func() uint64 {
		b, err := os.ReadFile("/proc/self/statm")
		require.NoError(t, err)
		n, ok := statmShared(b)
		require.True(t, ok)
		return n
	}
	before := resident()
	require.NoError(t, trimText())
	assert.Less(t, resident(), before)
	require.NoError(t, trimText(), "all of it is still there")
}

// statmShared is the third number of /proc/self/statm: resident pages of files.
func statmShared(b []byte) (n uint64, ok bool) {
	field := 0
	for _, c := range b {
		switch {
		case c == ' ':
			if field++; field == 3 {
				return n, true
			}
		case field == 2 && c >= '0' && c <= '9':
			n = n*10 + uint64(c-'0')
		}
	}
	return 0, false
}
