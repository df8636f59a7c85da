package main

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

func TestParseInst(t *testing.T) {
	const out = `Reading package lists...
The following NEW packages will be installed:
  gcc-12-base libc6
Inst gcc-12-base (12.2.0-14 Debian:12.11/oldstable [amd64])
Inst libc6 [2.36-8] (2.36-9+deb12u1 Debian:12.11/oldstable, Debian-Security:12/x [amd64]) []
Inst libc6:i386 (2.36-9+deb12u1 Debian:12.11/oldstable [i386])
Conf gcc-12-base (12.2.0-14 Debian:12.11/oldstable [amd64])
Inst libc6 (2.36-9+deb12u1 Debian:12.11/oldstable [amd64])
`
	assert.Equal(t, []resolved{
		{"gcc-12-base", "12.2.0-14"}, {"libc6", "2.36-9+deb12u1"}, {"libc6:i386", "2.36-9+deb12u1"},
	}, parseInst(out))
	assert.Empty(t, parseInst("E: nothing\n"))
}

func TestLastErrors(t *testing.T) {
	assert.Equal(t, "one; two", lastErrors("W: x\nE: one\nW: y\nE: two\n"))
	assert.Equal(t, "last", lastErrors("first\nlast\n"))
}

func TestChoose(t *testing.T) {
	all, err := choose(nil)
	require.NoError(t, err)
	assert.Len(t, all, len(wants())-3, "all but what only larger suites use")
	assert.False(t, slices.ContainsFunc(all, func(w want) bool { return w.larger }))
	some, err := choose([]string{nested.ComponentBusybox, nested.ComponentQEMU})
	require.NoError(t, err)
	assert.Len(t, some, 2)
	_, err = choose([]string{"nonsense"})
	assert.ErrorContains(t, err, nested.ComponentBusybox)
}

func TestWhatKernelsTake(t *testing.T) {
	for _, w := range wants() {
		if w.name == nested.ComponentCloud {
			assert.True(t, w.take("linux-image-6.1.0-50-cloud-amd64"))
			assert.True(t, w.take("linux-modules-7.2.1+deb14-cloud-amd64"))
			assert.False(t, w.take("initramfs-tools"))
		}
	}
}
