/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * tdb: what the files that read values of messages.tdb share, and the functions of libtdb that they call.
 */
#ifndef MSGD_RECORDS_H
#define MSGD_RECORDS_H

#include "native.h"

/* Whether the value consists of plain messages to this pid, and of nothing else. */
int are_plain(const char *data, Py_ssize_t size, int32_t pid);

/*
 * A new Message of the plain record at *position, which is moved behind it, also if memory is short: then the result is
 * NULL with MemoryError.  NULL without an exception, and *position as it was, if that record is not plain.
 */
PyObject *next_plain(Addresses *addresses, const char *data, Py_ssize_t size, int32_t pid, Py_ssize_t *position);

/* tdb.h; it need not be installed. */
typedef struct {
	unsigned char *dptr;
	size_t dsize;
} TDB_DATA;

/* An open file. */
typedef struct {
	PyObject_HEAD
	void *handle; /* NULL once it is closed */
	int (*lock)(void *handle, TDB_DATA key);
	int (*unlock)(void *handle, TDB_DATA key);
	int (*parse_record)(void *handle, TDB_DATA key, int (*parser)(TDB_DATA key, TDB_DATA data, void *private_data),
			    void *private_data);
	int (*store)(void *handle, TDB_DATA key, TDB_DATA value, int flag);
	int (*append)(void *handle, TDB_DATA key, TDB_DATA value);
} Library;

static inline TDB_DATA datum(PyObject *bytes)
{
	return (TDB_DATA){(unsigned char *)PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes)};
}

extern PyTypeObject LibraryType;
extern PyTypeObject OwnRecordType;

#endif
