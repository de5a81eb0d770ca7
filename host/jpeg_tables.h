/* A check of JPEG files before stb_image sees them: it takes Huffman tables of more symbols than it has room for. */
#ifndef ONN_JPEG_TABLES_H
#define ONN_JPEG_TABLES_H

#include <stddef.h>

/* jpeg_tables_fit() : 1 if `data` is no JPEG, or if all segments that a decoder comes to are whole and no Huffman table has more than 256 symbols. */
int jpeg_tables_fit(const unsigned char *data, size_t length);

#endif
