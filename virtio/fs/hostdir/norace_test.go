//go:build !race

package hostdir_test

const race = false
